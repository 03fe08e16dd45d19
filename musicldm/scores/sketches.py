"""Sketches: music as notes, drums and beats alone, with a plain sound of its own, to say what a model is to play.

    MIDI file, chord symbols, a hummed melody, a click  ->  Sketch  ->  MIDI file, or waveform (L,) or (A, L)

Sketches are values: adding, cutting, shifting and transposing give new ones. Times are seconds from the first sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from musicldm.audio.output import write_whole
from musicldm.config.values import check_kind, check_number, check_whole, shown
from musicldm.scores.chords import parse_chords, voiced
from musicldm.scores.general_midi import DRUM_CHANNEL
from musicldm.scores.reading import NOTE, Change, Score, change_score, midi_file, read_score
from musicldm.scores.sketch_sound import PLAIN, Timbre, render_sketch

# What may be said of a sketch: a whole score, or parts of one; models tell contexts apart by these.
SKETCH_KINDS = ("notes", "melody", "chords", "bass", "drums", "click")
RHYTHMS = ("block", "arpeggio", "comp")
VELOCITY = 90
SLOWEST_BPM, FASTEST_BPM = 20.0, 400.0
MOST_BEATS = 64  # of a bar
LONGEST_S = 3600.0
WOODBLOCK, WOODBLOCK_LOW = 76, 77  # General MIDI drums that stand for clicks in MIDI files

Rhythm = Literal["block", "arpeggio", "comp"]


@dataclass(frozen=True, eq=False)
class Sketch:
    """Notes and beats in time.

    Attributes:
        score: notes, tempos, metres and keys; its controls are not played.
        clicks: (M, 2), the time of each beat that is heard as a click, and 1 for a downbeat.
        seconds: length.
        kinds: what is in it, of `SKETCH_KINDS`; sketches that are added have those of both.
    """

    score: Score
    clicks: np.ndarray
    seconds: float
    kinds: tuple[str, ...] = ("notes",)

    def __post_init__(self):
        check_number("seconds", self.seconds)
        check_kind("kinds", self.kinds, (tuple, list), f"some of {', '.join(SKETCH_KINDS)}")
        if not self.kinds or (unknown := [kind for kind in self.kinds if kind not in SKETCH_KINDS]):
            got = ", ".join(map(shown, unknown)) if self.kinds else "none"
            raise ValueError(f"the kinds of a sketch must be some of {', '.join(SKETCH_KINDS)}, got {got}")
        object.__setattr__(self, "kinds", tuple(kind for kind in SKETCH_KINDS if kind in self.kinds))
        if not 0 < self.seconds <= LONGEST_S:
            raise ValueError(f"a sketch must last from 0 to {LONGEST_S:g} s, got {self.seconds:g}; take a part of it")

    @property
    def notes(self) -> np.ndarray:
        """(N,) of `musicldm.scores.reading.NOTE`, by start."""
        return self.score.notes

    @classmethod
    def from_midi(cls, path: str | Path, tracks: list[int] | tuple[int, ...] | None = None) -> Sketch:
        """The notes of a MIDI file, to the end of the last one.

        ``tracks``, counted from 1 as sequencers show them, are those of the file that have notes; a file of one track
        (type 0) is counted by its channels instead. The sketch is of kind notes, or drums if there is nothing else.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it cannot be read, has no notes, or none of such tracks.
        """
        score = read_score(Path(path), tracks)
        kinds = ("drums",) if (score.notes["channel"] == DRUM_CHANNEL).all() else ("notes",)
        return cls(score._replace(controls=[]), np.empty((0, 2)), float(score.notes["end_s"].max()), kinds)

    @classmethod
    def from_chords(cls, text: str, bpm: float = 120.0, meter: str = "4/4", rhythm: Rhythm = "block") -> Sketch:
        """Chords with a bass, as ``"Am F C G"`` or ``"| Am F | C |"`` (`musicldm.scores.chords`).

        A beat is the note that the lower number of ``meter`` names. The first beat is sample 0, the length that of the
        bars. ``rhythm``: block (held), arpeggio (one note after another, two a beat) or comp (struck on each beat).

        Raises:
            ValueError: for something that is no chord, tempo, metre or rhythm.
        """
        beats, _ = parse_meter(meter)
        check_bpm(bpm)
        if rhythm not in RHYTHMS:
            raise ValueError(f"rhythm must be one of {', '.join(RHYTHMS)}, got {shown(rhythm)}")
        placed, bars = parse_chords(text)
        beat_s = 60 / bpm
        notes: list[tuple] = []
        pitches: tuple[int, ...] = ()
        for chord, start, end in placed:
            if not chord.tones:
                continue
            pitches = voiced(chord, pitches)
            notes += played(pitches, float(start) * beats, float(end) * beats, beat_s, rhythm)
        return cls(_score(notes, bpm, meter), np.empty((0, 2)), bars * beats * beat_s, ("chords",))

    @classmethod
    def from_melody(cls, audio: np.ndarray, rate: int) -> Sketch:
        """The notes of one voice that is hummed, whistled or sung in ``audio`` (L,), by probabilistic YIN.

        Raises:
            ValueError: if no pitch is heard.
        """
        from musicldm.analysis.melody import melody_notes

        notes = [(start, end, pitch, VELOCITY, 0, 0, 1.0) for start, end, pitch in melody_notes(audio, rate)]
        if not notes:
            raise ValueError("no pitch is heard in the melody; give a recording of one voice, louder or nearer")
        return cls(_score(notes), np.empty((0, 2)), len(audio) / rate, ("melody",))

    @classmethod
    def click(cls, bpm: float, meter: str = "4/4", bars: int | None = None, seconds: float | None = None) -> Sketch:
        """A click on each beat, the first at sample 0, higher on downbeats, for so many bars or seconds (4 bars).

        Raises:
            ValueError: for a tempo, metre or length that is none.
        """
        beats, _ = parse_meter(meter)
        check_bpm(bpm)
        if bars is not None and seconds is not None:
            raise ValueError(f"give either bars or seconds, got both ({bars} and {seconds})")
        if seconds is None:
            check_whole("bars", 4 if bars is None else bars)
            seconds = (4 if bars is None else bars) * beats * 60 / bpm
        check_number("seconds", seconds)
        times = np.arange(0, seconds - 1e-9, 60 / bpm)
        clicks = np.stack([times, np.arange(len(times)) % beats == 0], axis=1)
        return cls(_score([], bpm, meter), clicks, float(seconds), ("click",))

    def __add__(self, other: Sketch) -> Sketch:
        """Both at once, as long as the longer one; tempo and metre are those of the first that states them."""
        check_kind("what is added to a sketch", other, Sketch, "a Sketch")
        notes = np.sort(np.concatenate([self.notes, other.notes]), order=["start_s", "pitch"])
        clicks = np.concatenate([self.clicks, other.clicks])
        first, second = self.score, other.score
        score = Score(
            notes,
            [],
            first.tempos if len(first.tempos) else second.tempos,
            first.metres or second.metres,
            first.keys or second.keys,
        )
        clicks = clicks[np.argsort(clicks[:, 0], kind="stable")]
        return Sketch(score, clicks, max(self.seconds, other.seconds), self.kinds + other.kinds)

    def cut(self, start_s: float, end_s: float) -> Sketch:
        """What sounds from ``start_s`` to ``end_s``; notes that sound across an end are shortened.

        Raises:
            ValueError: unless 0 <= start_s < end_s <= its length.
        """
        check_number("start_s", start_s)
        check_number("end_s", end_s)
        if not 0 <= start_s < end_s <= self.seconds + 1e-9:
            raise ValueError(f"cannot cut {start_s:g} to {end_s:g} s out of a sketch of {self.seconds:g} s")
        notes = self.notes[(self.notes["start_s"] < end_s) & (self.notes["end_s"] > start_s)].copy()
        notes["start_s"] = np.maximum(notes["start_s"], start_s) - start_s
        notes["end_s"] = np.minimum(notes["end_s"], end_s) - start_s
        inside = (self.clicks[:, 0] >= start_s) & (self.clicks[:, 0] < end_s)
        moved = _moved(self.score._replace(notes=notes), -start_s)
        return Sketch(moved, self.clicks[inside] - np.array([start_s, 0]), end_s - start_s, self.kinds)

    def shifted(self, seconds: float) -> Sketch:
        """The same after so many seconds of silence.

        Raises:
            ValueError: for a number below 0; `cut` takes something away.
        """
        check_number("seconds", seconds)
        if seconds < 0:
            raise ValueError(f"a sketch can be shifted by 0 s or more, got {seconds:g}; cut takes its beginning away")
        notes = self.notes.copy()
        notes["start_s"] += seconds
        notes["end_s"] += seconds
        moved = _moved(self.score._replace(notes=notes), seconds)
        return Sketch(moved, self.clicks + np.array([seconds, 0]), self.seconds + seconds, self.kinds)

    def stretched(self, factor: float) -> Sketch:
        """The same, ``factor`` times as long: slower above 1, its tempos accordingly.

        Raises:
            ValueError: unless ``factor`` is a number above 0.
        """
        check_number("factor", factor)
        if not factor > 0:
            raise ValueError(f"a sketch can be stretched by a factor above 0, got {factor:g}")
        score = change_score(self.score, Change(tempo_factor=1 / factor))
        return replace(self, score=score, clicks=self.clicks * np.array([factor, 1]), seconds=self.seconds * factor)

    def transposed(self, semitones: int) -> Sketch:
        """All notes but drums higher by so many ``semitones``.

        Raises:
            ValueError: if notes leave MIDI's range 0 to 127.
        """
        check_whole("semitones", semitones, -127, 127)
        notes = self.notes.copy()
        notes["pitch"][notes["channel"] != DRUM_CHANNEL] += semitones
        if len(notes) and not (notes["pitch"].min() >= 0 and notes["pitch"].max() <= 127):
            raise ValueError(f"transposed by {semitones} semitones, notes leave the MIDI range 0 to 127")
        return replace(self, score=self.score._replace(notes=notes))

    def render(self, rate: int, channels: int = 1, timbre: Timbre = PLAIN) -> np.ndarray:
        """Waveform (L,) float32, or (A, L) for several channels, at ``rate`` in Hz (`sketch_sound`)."""
        check_whole("rate", rate, 1000, 768_000)
        check_whole("channels", channels)
        return render_sketch(self.notes, self.clicks, self.seconds, rate, channels, timbre)

    def to_midi(self, path: str | Path) -> None:
        """Write a MIDI file of type 1, in the sketch's tempos and metres; clicks are woodblocks.

        Raises:
            OSError: if it cannot be written.
        """
        clicks = [
            (time, time + 0.05, WOODBLOCK if first else WOODBLOCK_LOW, VELOCITY, DRUM_CHANNEL, 0, 1.0)
            for time, first in self.clicks
        ]
        notes = np.concatenate([self.notes, np.array(clicks, dtype=NOTE)])
        write_whole(Path(path), midi_file(self.score._replace(notes=notes), self.seconds))


def parse_meter(meter: str) -> tuple[int, int]:
    """Beats of a bar, and the note that is a beat, of a metre such as "3/4".

    Raises:
        ValueError: for another text.
    """
    parts = meter.split("/") if isinstance(meter, str) else []
    if len(parts) == 2 and all(part.strip().isdecimal() for part in parts):
        beats, unit = (int(part) for part in parts)
        if 1 <= beats <= MOST_BEATS and unit in (1, 2, 4, 8, 16, 32):
            return beats, unit
    raise ValueError(f"meter must be as 4/4, 3/4 or 6/8, with up to {MOST_BEATS} beats, got {shown(meter)}")


def check_bpm(bpm: float) -> None:
    """ValueError unless ``bpm`` is a tempo."""
    check_number("bpm", bpm)
    if not SLOWEST_BPM <= bpm <= FASTEST_BPM:
        raise ValueError(f"bpm must be from {SLOWEST_BPM:g} to {FASTEST_BPM:g} beats a minute, got {shown(bpm)}")


def _score(notes: list[tuple], bpm: float | None = None, meter: str = "4/4") -> Score:
    beats, unit = parse_meter(meter)
    table = np.sort(np.array(notes, dtype=NOTE), order=["start_s", "pitch"])
    if bpm is None:
        return Score(table, [], np.empty((0, 2)), [], [])
    quarters = bpm * 4 / unit  # a minute
    return Score(table, [], np.array([[0.0, quarters]]), [(0.0, beats, unit)], [])


def _moved(score: Score, seconds: float) -> Score:
    """``score``, whose notes have been moved already, with tempos, metres and keys later by ``seconds``.

    What was in force at the new beginning holds from there.
    """

    def later(entries: list[tuple]) -> list[tuple]:
        times = [max(entry[0] + seconds, 0.0) for entry in entries]
        last = sum(time == 0 for time in times)
        return [(time, *entry[1:]) for time, entry in zip(times, entries, strict=True)][max(last - 1, 0) :]

    tempos = np.array(later([tuple(row) for row in score.tempos])).reshape(-1, 2)
    return score._replace(tempos=tempos, metres=later(score.metres), keys=later(score.keys))


def played(pitches: tuple[int, ...], first: float, end: float, beat_s: float, rhythm: Rhythm) -> list[tuple]:
    """Notes of a chord from beat ``first`` to beat ``end``; the bass is held throughout."""

    def note(pitch: int, start: float, stop: float) -> tuple:
        return start * beat_s, stop * beat_s, pitch, VELOCITY, 0, 0, 1.0

    bass, *upper = pitches
    notes = [note(bass, first, end)]
    if rhythm == "block":
        return notes + [note(pitch, first, end) for pitch in upper]
    step = 0.5 if rhythm == "arpeggio" else 1.0
    times = [*np.arange(first, end - 1e-9, step), end]
    for i, (start, stop) in enumerate(pairwise(times)):
        if rhythm == "arpeggio":
            notes.append(note(upper[i % len(upper)], start, stop))
        else:
            notes += [note(pitch, start, start + 0.8 * (stop - start)) for pitch in upper]
    return notes
