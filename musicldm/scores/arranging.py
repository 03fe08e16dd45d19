"""Drawing how one rendering of a score differs from it: instruments, tempo, pitch, dynamics, room."""

from typing import NamedTuple, Protocol

import numpy as np

from musicldm.scores.general_midi import DRUM_CHANNEL, DRUM_KITS, ORCHESTRATIONS, PROGRAMS
from musicldm.scores.reading import Change, Score, parts, select
from musicldm.scores.synthesis import Effects

DRUMS = (DRUM_CHANNEL, 0)
ONE_INSTRUMENT_SHARE = 0.5  # how often a re-scored piece is for one instrument alone
FEW_PARTS_SHARE = 0.4  # how often a re-scored piece is reduced to one to three parts


class Choices(Protocol):
    """What ``RenderConfig`` leaves to chance."""

    @property
    def tempo_range(self) -> tuple[float, float]: ...
    @property
    def transpose_range(self) -> tuple[int, int]: ...
    @property
    def velocity_range(self) -> tuple[float, float]: ...
    @property
    def program_share(self) -> float: ...
    @property
    def drumless_share(self) -> float: ...


class Rendering(NamedTuple):
    """One drawn rendering."""

    change: Change
    effects: Effects


def can_play(score: Score, target: str) -> bool:
    """Whether ``score`` has notes for ``target``: drums for "drums", others for another family."""
    drums = score.notes["channel"] == DRUM_CHANNEL
    return target == "original" or bool(drums.any() if target == "drums" else (~drums).any())


def can_leave_drums(score: Score) -> bool:
    """Whether ``score`` has drums, and music without them."""
    drums = score.notes["channel"] == DRUM_CHANNEL
    return bool(drums.any() and not drums.all())


def draw_rendering(score: Score, target: str, rng: np.random.Generator, choices: Choices) -> Rendering:
    """Draw a rendering of ``score``, re-scored for the family ``target`` unless that is "original".

    Raises ValueError when no transposition of the range keeps its notes within MIDI's.
    """
    melodic = parts(score)
    effects = Effects(
        reverb_level=float(rng.uniform(0.05, 0.7)),
        room_size=float(rng.uniform(0.1, 0.8)),
        chorus_level=float(rng.uniform(0.2, 1.5)) if rng.random() < 0.5 else 0.0,
    )
    octaves: dict[tuple[int, int], int] = {}
    kept = None
    kit = int(rng.choice(DRUM_KITS)) if rng.random() < choices.program_share else None
    if target == "original":
        programs = {part: _other_program(part[1], rng, choices.program_share) for part in melodic}
        if choices.drumless_share and can_leave_drums(score) and rng.random() < choices.drumless_share:
            kept = frozenset(melodic)
    elif target == "drums":
        programs, kept = {}, frozenset([DRUMS])
    else:
        if rng.random() < FEW_PARTS_SHARE:
            melodic = _few_parts(score, melodic, rng)
        kept = frozenset(melodic)
        programs, octaves = _orchestrate(score, melodic, ORCHESTRATIONS[target], rng)
    low, high = _pitch_room(score, melodic if target != "drums" else [], octaves)
    span = range(max(choices.transpose_range[0], -low), min(choices.transpose_range[1], high) + 1)
    if not span:
        raise ValueError(f"transposed by {choices.transpose_range} semitones, notes leave the MIDI range 0 to 127")
    change = Change(
        tempo_factor=float(np.exp(rng.uniform(*np.log(choices.tempo_range)))),
        transpose=int(rng.choice(span)),
        velocity_factor=float(rng.uniform(*choices.velocity_range)),
        programs=programs,
        octaves=octaves,
        parts=kept,
        drum_kit=kit,
    )
    return Rendering(change, effects)


def _other_program(program: int, rng: np.random.Generator, share: float) -> int:
    same = [p.number for p in PROGRAMS if p.swap == PROGRAMS[program].swap]
    return int(rng.choice(same)) if rng.random() < share else program


def _pitch_room(score: Score, melodic: list[tuple[int, int]], octaves: dict[tuple[int, int], int]) -> tuple[int, int]:
    """How many semitones all parts can go down and up within the MIDI range."""
    low, high = 127, 127
    for part in melodic:
        pitch = score.notes["pitch"][select(score.notes, part)] + octaves.get(part, 0)
        low, high = min(low, int(pitch.min())), min(high, 127 - int(pitch.max()))
    return low, high


def _few_parts(score: Score, melodic: list[tuple[int, int]], rng: np.random.Generator) -> list[tuple[int, int]]:
    """One to three of the parts that play through most of the piece."""
    length = score.notes["end_s"].max()
    busy = [p for p in melodic if _sounding_s(score.notes[select(score.notes, p)]) > 0.5 * length]
    if not busy:
        return melodic
    n = min(len(busy), int(rng.integers(1, 4)))
    return [busy[i] for i in sorted(rng.permutation(len(busy))[:n])]


def _sounding_s(notes: np.ndarray) -> float:
    """Seconds in which at least one of ``notes`` sounds."""
    latest = np.maximum.accumulate(notes["end_s"])
    begins = np.maximum(notes["start_s"], np.concatenate([[0.0], latest[:-1]]))
    return float(np.maximum(notes["end_s"] - begins, 0).sum())


def _orchestrate(
    score: Score, melodic: list[tuple[int, int]], pool: tuple[int, ...], rng: np.random.Generator
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
    """A program of ``pool`` and an octave shift for each part, by its register and its chords."""
    one = int(rng.choice(pool)) if rng.random() < ONE_INSTRUMENT_SHARE else None
    programs, octaves = {}, {}
    for part in melodic:
        notes = score.notes[select(score.notes, part)]
        chords = (notes["end_s"] - notes["start_s"]).sum() > 1.3 * _sounding_s(notes)
        low, high = np.quantile(notes["pitch"], (0.1, 0.9))
        candidates = [one] if one is not None else pool
        costs = {}
        for program in candidates:
            p = PROGRAMS[program]
            for octave in (-36, -24, -12, 0, 12, 24, 36):
                if notes["pitch"].min() + octave < 0 or notes["pitch"].max() + octave > 127:
                    continue
                outside = max(0, p.low - low - octave) + max(0, high + octave - p.high)
                unfit = 6.0 if chords != p.chords else 0.0
                off_centre = abs((low + high) / 2 + octave - (p.low + p.high) / 2) / 6
                costs[program, octave] = outside + abs(octave) / 6 + off_centre + unfit + rng.uniform(0, 3)
        programs[part], octaves[part] = min(costs, key=lambda choice: costs[choice])
    return programs, octaves
