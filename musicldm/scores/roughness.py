"""What makes sketches as rough as people's: missing and doubled notes, small errors of time, other plain sounds."""

import numpy as np

from musicldm.scores.beats import Grid
from musicldm.scores.general_midi import DRUM_CHANNEL
from musicldm.scores.parts import of_voices
from musicldm.scores.sketch_sound import PLAIN, Timbre

VELOCITY = 90  # of notes that people write down without one
PLAIN_SHARE = 0.6  # of sketches with the sound that people's have
OMITTING_SHARE, MOST_OMITTED = 0.25, 0.3  # of sketches, and of their notes
PART_OMITTED_SHARE = 0.25  # of whole scores that lack one of their parts
DOUBLED_SHARE, SHIFTED_SHARE = 0.12, 0.08  # of sketches with octaves added, and of melodies in another octave
LATE_SHARE, MOST_LATE_S = 0.5, 0.02  # of sketches with errors of time, and their standard deviation at most
EVEN_SHARE = 0.4  # of sketches with one velocity for all notes
SHORTENED_SHARE = 0.2  # of sketches whose notes are shorter
TAPPED_BPM = 240.0  # beats faster than this are clicked two or three at a time
COMPOUND = (6, 9, 12)  # eighths of a bar, of which three may be a click


def rough(notes: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """``notes`` of a ``kind`` of sketch as somebody might have written or played them."""
    omits, lacks, doubles, shifts, errs, evens, shortens = rng.random(7) < (
        OMITTING_SHARE,
        PART_OMITTED_SHARE,
        DOUBLED_SHARE,
        SHIFTED_SHARE,
        LATE_SHARE,
        EVEN_SHARE,
        SHORTENED_SHARE,
    )
    notes = notes.copy()
    if kind == "notes" and lacks:
        notes = _without_a_part(notes, rng)
    if omits and kind != "chords":
        notes = notes[rng.random(len(notes)) >= rng.uniform(0, MOST_OMITTED)]
    is_pitched = notes["channel"] != DRUM_CHANNEL
    if shifts and kind == "melody":
        notes["pitch"] = _within(notes["pitch"] + 12 * int(rng.choice((-1, 1))), notes["pitch"])
    if shortens:
        held = notes["end_s"] - notes["start_s"]
        notes["end_s"] = notes["start_s"] + np.where(is_pitched, held * rng.uniform(0.5, 1.0), held)
    if errs and kind != "chords":
        late = rng.normal(0, rng.uniform(0, MOST_LATE_S), len(notes)).clip(-2 * MOST_LATE_S, 2 * MOST_LATE_S)
        late = np.maximum(late, -notes["start_s"])
        notes["start_s"] += late
        notes["end_s"] += late
    if evens:
        notes["velocity"], notes["level"] = VELOCITY, 1.0
    if doubles:
        other = notes[is_pitched].copy()
        other["pitch"] = _within(other["pitch"] + 12 * int(rng.choice((-1, 1))), other["pitch"])
        notes = np.concatenate([notes, other])
    return np.sort(notes, order=["start_s", "pitch"])


def _within(pitch: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """``pitch`` where that is one of MIDI's."""
    return np.where((pitch >= 0) & (pitch <= 127), pitch, otherwise)


def _without_a_part(notes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``notes`` without one of their parts, if there are several; drums are one."""
    played = sorted({(int(c), 0 if c == DRUM_CHANNEL else int(p)) for c, p in notes[["channel", "program"]].tolist()})
    if len(played) < 2:
        return notes
    return notes[~of_voices(notes, [played[int(rng.integers(len(played)))]])]


def draw_timbre(rng: np.random.Generator) -> Timbre:
    """The sound of sketches as people render them, or another plain one."""
    plain, slope, attack, release, decay = rng.random(5)
    number = int(rng.integers(1, 9))
    odd_only = rng.random() < 0.2
    if plain < PLAIN_SHARE:
        return PLAIN
    partials = np.arange(1, number + 1) ** -(0.7 + 1.8 * slope)
    if odd_only:
        partials[1::2] = 0.0
    return Timbre(
        partials=tuple(partials.tolist()),
        attack_s=0.002 * 15**attack,
        release_s=0.005 * 16**release,
        decay_per_s=3.0 * decay,
    )


def clicks_of(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """The beats of ``grid`` (M, 2) as clicks; fast ones, and eighths of compound metres, by twos or threes."""
    if len(grid.times_s) < 2:
        return np.empty((0, 2))
    compound, pulse = rng.random(2) < 0.5
    of, unit = int(grid.of[0]), float(grid.quarters[0])
    bpm = 60 / float(np.median(np.diff(grid.times_s)))
    by = 3 if of in COMPOUND and unit == 0.5 and (compound or bpm > TAPPED_BPM) else 1
    if by == 1 and bpm > TAPPED_BPM:
        by = 2 if of % 2 == 0 else of
    clicks = grid.clicks[grid.place % by == 0] if (grid.of == of).all() else grid.clicks
    if pulse and rng.random() < 0.2:
        clicks[:, 1] = 0  # somebody who taps has no downbeats
    return clicks
