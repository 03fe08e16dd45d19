"""What is true of a clip, read off its notes.

Piece -> beats, chords of bars, melody, notes, onsets of drums; None where a clip has no such thing
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.control.judges import MELODY, ROOTS, STEP_S, TRIADS
from benchmarks.control.pieces import SECONDS, Piece
from musicldm.scores.beats import beat_grid
from musicldm.scores.general_midi import DRUM_CHANNEL
from musicldm.scores.reading import parts, select

CLEAR = 0.75  # share of what sounds that belongs to its chord, where that is true beyond doubt
CLEAR_SHARE = 0.6  # of the bars, in a clip that is asked for
BASS = 0.1  # what the lowest note counts beside that: of Am7 and C the one whose root it is
SPLIT = 0.1  # by how much two chords must fit better than one for a bar to have two
STEADY = 0.01  # change of the length of beats
VOICE = 0.8, 0.6  # shares of the sounding time with one note, and of the clip with any, of a part that is a melody
DRUMS = {"kick": (35, 36), "snare": (37, 38, 40), "cymbals": (42, 44, 46, 49, 51, 52, 53, 55, 57, 59)}  # General MIDI
FEWEST = {"notes": 10, "drums": 8}  # in a clip that is asked for


@dataclass(frozen=True)
class Chords:
    """A chord or two for each bar."""

    text: str  # as people write them, bars between lines
    labels: list[str]  # as mir_eval reads them; X, which it leaves out, where the notes do not say clearly which it is
    intervals: np.ndarray  # (N, 2) seconds, the first from before the clip on
    bpm: float
    meter: str


def beats(piece: Piece) -> np.ndarray | None:
    """Times (N,) of the beats as one taps them, where the clip has one known tempo."""
    bpm, steady = piece.row["tempo_bpm"], piece.row["tempo_steady"]
    grid = beat_grid(piece.score, 0.0, SECONDS)
    if not bpm or not steady or len(grid.times_s) < 4:
        return None
    step = max(1, round(60 / bpm / float(np.diff(grid.times_s).mean())))
    return grid.times_s[grid.place % step == 0]


def melodic(piece: Piece) -> np.ndarray:
    """Notes but drums."""
    return piece.score.notes[piece.score.notes["channel"] != DRUM_CHANNEL]


def notes(piece: Piece) -> np.ndarray | None:
    """(N, 2): onsets in seconds and MIDI pitches of all notes but drums that begin in the clip."""
    found = melodic(piece)
    found = found[found["start_s"] > 0]
    if len(found) < FEWEST["notes"]:
        return None
    return np.unique(np.stack([found["start_s"], found["pitch"]], axis=1), axis=0)


def drums(piece: Piece) -> dict[str, np.ndarray] | None:
    """Onsets in seconds of kick, snare and cymbals; a drum that the clip lacks is left out."""
    struck = piece.score.notes[piece.score.notes["channel"] == DRUM_CHANNEL]
    found = {name: np.unique(struck["start_s"][np.isin(struck["pitch"], pitches)]) for name, pitches in DRUMS.items()}
    found = {name: times for name, times in found.items() if len(times) >= FEWEST["drums"] // 2}
    return found if sum(map(len, found.values())) >= FEWEST["drums"] else None


def melody(piece: Piece) -> tuple[np.ndarray, np.ndarray] | None:
    """The notes of the melody, and its pitch every `STEP_S`, 0 where it rests.

    The melody is the highest part that plays mostly one note at a time, through most of the clip.
    """
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for part in parts(piece.score):
        found = piece.score.notes[select(piece.score.notes, part)]
        pitches, at_once = sounding(found)
        sounds = at_once > 0
        if not sounds.any() or (at_once[sounds] == 1).mean() < VOICE[0] or sounds.mean() < VOICE[1]:
            continue
        mean = float(pitches[sounds].mean())
        if MELODY[0] <= mean <= MELODY[1] and (best is None or mean > best[0]):
            best = mean, found, pitches
    return None if best is None else best[1:]


def sounding(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest pitch of notes, 0 where there is none, and how many there are at once, every `STEP_S`."""
    times = np.arange(0, SECONDS, STEP_S)
    pitches, at_once = np.zeros(len(times)), np.zeros(len(times), int)
    for note in found:
        within = (times >= note["start_s"]) & (times < note["end_s"])
        pitches[within] = np.maximum(pitches[within], note["pitch"])
        at_once += within
    return pitches, at_once


def chords(piece: Piece) -> Chords | None:
    """The chords of the clip's bars, where its tempo is steady and its notes say clearly which most of them are.

    How training finds chords (`musicldm.scores.harmony`) is not asked, so that its faults are no truth here.
    """
    grid = beat_grid(piece.score, 0.0, SECONDS)
    firsts = np.flatnonzero(grid.place == 0)
    if len(firsts) < 2 or not piece.row["time_signature"]:
        return None
    count, lengths = int(grid.of[0]), np.diff(grid.times_s)
    meter = f"{count}/{round(4 / grid.quarters[0])}"
    same = (grid.of == count).all() and np.abs(lengths / lengths.mean() - 1).max() <= STEADY
    if not same or meter != piece.row["time_signature"]:
        return None
    beat_s, played = float(lengths.mean()), melodic(piece)
    first_s = float(grid.times_s[firsts[0]])
    start_s = first_s - (count * beat_s if first_s > 0.02 else 0.0)
    bars, labels, intervals, clear = [], [], [], []
    for bar_s in np.arange(start_s, SECONDS - 0.02, count * beat_s):
        said = bar_chords(played, bar_s, bar_s + count * beat_s, halves=count % 2 == 0)
        if said is None:
            return None
        bars.append(" ".join(one.symbol for one in said))
        edges = np.linspace(bar_s, bar_s + count * beat_s, len(said) + 1)
        labels += [one.label if one.share >= CLEAR else "X" for one in said]
        intervals += np.stack([edges[:-1], edges[1:]], axis=1).tolist()
        clear.append(all(one.share >= CLEAR for one in said))
    if len({*labels} - {"X"}) < 2 or np.mean(clear) < CLEAR_SHARE:
        return None
    return Chords(f"| {' | '.join(bars)} |", labels, np.array(intervals), 60 / beat_s, meter)


@dataclass(frozen=True)
class Triad:
    """The triad that fits best to what sounds."""

    root: int  # pitch class
    kind: str
    share: float  # of what sounds that belongs to it

    @property
    def symbol(self) -> str:
        return ROOTS[self.root] + ("m" if self.kind == "min" else "")

    @property
    def label(self) -> str:
        return f"{ROOTS[self.root]}:{self.kind}"


def bar_chords(played: np.ndarray, start_s: float, end_s: float, halves: bool) -> list[Triad] | None:
    """The one or two chords of a bar; None where nothing sounds.

    What of the bar lies outside the clip is judged by what lies inside.
    """
    whole = best_triad(played, start_s, end_s)
    if whole is None or not halves:
        return None if whole is None else [whole]
    middle_s = (start_s + end_s) / 2
    first, second = best_triad(played, start_s, middle_s), best_triad(played, middle_s, end_s)
    if first is None or second is None or first.label == second.label:
        return [whole]
    return [first, second] if min(first.share, second.share) > whole.share + SPLIT else [whole]


def best_triad(played: np.ndarray, start_s: float, end_s: float) -> Triad | None:
    """The triad that fits best to what sounds between two times of the clip; None where nothing does."""
    start_s, end_s = max(start_s, 0.0), min(end_s, SECONDS)
    held = np.minimum(played["end_s"], end_s) - np.maximum(played["start_s"], start_s)
    inside = held > 0.02
    if end_s - start_s < 0.1 or not inside.any():
        return None
    pitches = played["pitch"][inside]
    weights = np.bincount(pitches % 12, held[inside], 12)
    weights /= weights.sum()
    shares = {
        (root, kind): float(weights[[(root + tone) % 12 for tone in tones]].sum())
        for kind, tones in TRIADS.items()
        for root in range(12)
    }
    root, kind = max(shares, key=lambda one: shares[one] + BASS * (one[0] == pitches.min() % 12))
    return Triad(root, kind, shares[root, kind])
