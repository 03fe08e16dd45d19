"""Beats of a score, and a stretch of a score in the time of a clip that was cut out of it.

    Score -> beat_grid -> beats in seconds, and their places in bars
    Score, stretches (start_s, end_s) of it -> clip_score -> Score in the clip's seconds, with its beats

A metre begins with a bar. One that holds for less than its bar before another follows is a pick-up: its beats count
back from the end. So a clip that begins within a bar states its metre twice, at 0 s and at its first downbeat.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mido
import numpy as np

from musicldm.scores.facts import Facts, is_metre
from musicldm.scores.reading import Score, state

DEFAULT_TEMPO = 120.0  # quarter notes a minute, of a MIDI file before it states one
DEFAULT_METRE = (4, 4)
PULSE = (1, 4)  # the metre of beats of which it is not known where bars begin
NEAR = 2e-3  # quarter notes that are rounding
SUBDIVISIONS = (0, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 1)  # of a quarter note, where onsets of written music lie
OFF_GRID = 0.02  # quarter notes beside those
ON_GRID_SHARE = 0.8  # of the onsets; of arbitrary ones it is a quarter


class TempoMap(NamedTuple):
    """Seconds to quarter notes and back."""

    starts: np.ndarray  # (M,) seconds, from 0
    rates: np.ndarray  # (M,) quarter notes a second from there
    at: np.ndarray  # (M,) quarter notes that have passed there

    def quarters(self, times_s: np.ndarray | float) -> np.ndarray:
        i = np.maximum(np.searchsorted(self.starts, times_s, side="right") - 1, 0)
        return self.at[i] + (times_s - self.starts[i]) * self.rates[i]

    def seconds(self, quarters: np.ndarray | float) -> np.ndarray:
        i = np.maximum(np.searchsorted(self.at, quarters, side="right") - 1, 0)
        return self.starts[i] + (quarters - self.at[i]) / self.rates[i]


def tempo_map(score: Score, before: float = DEFAULT_TEMPO) -> TempoMap:
    """The tempos of ``score``; ``before`` the first of them so many quarter notes a minute."""
    starts = np.concatenate([[0.0], score.tempos[:, 0]])
    rates = np.concatenate([[before], score.tempos[:, 1]]) / 60
    return TempoMap(starts, rates, np.concatenate([[0.0], np.cumsum(np.diff(starts) * rates[:-1])]))


def on_grid(score: Score, tempos: TempoMap) -> bool:
    """Whether the onsets of ``score`` lie where its beats and their usual parts are, as in written music."""
    within = np.mod(tempos.quarters(score.notes["start_s"]), 1.0)
    off = np.abs(within[:, None] - np.array(SUBDIVISIONS)).min(axis=1)
    return bool(np.mean(off < OFF_GRID) >= ON_GRID_SHARE)


class Grid(NamedTuple):
    """Beats, (M,) each. A beat is the note that the lower number of the metre names."""

    times_s: np.ndarray
    place: np.ndarray  # in the bar, 0 for downbeats
    of: np.ndarray  # beats of the bar
    quarters: np.ndarray  # length of a beat in quarter notes

    @property
    def clicks(self) -> np.ndarray:
        """(M, 2): times, and 1 for downbeats."""
        return np.stack([self.times_s, self.place == 0], axis=1).astype(float)


def beat_grid(score: Score, start_s: float, end_s: float) -> Grid:
    """Beats from ``start_s`` and before ``end_s``. Without a tempo at its beginning ``score`` has none.

    Metres are 4/4 until one is stated, as in MIDI.
    """
    if not len(score.tempos) or score.tempos[0, 0] > 0:
        return Grid(*np.empty((4, 0)))
    tempos = tempo_map(score)
    stated = {float(tempos.quarters(t)): (n, d) for t, n, d in score.metres if is_metre(n, d)}
    if not stated or min(stated) > NEAR:
        stated[0.0] = DEFAULT_METRE
    begins = sorted(stated)
    last = float(tempos.quarters(end_s))
    beats = []
    for begin, end in zip(begins, [*begins[1:], np.inf], strict=True):
        numerator, denominator = stated[begin]
        unit = 4 / denominator
        if end - begin < numerator * unit - NEAR:
            count = -np.arange(int((end - begin + NEAR) / unit), 0, -1)
            places = end + count * unit
        else:
            count = np.arange(max(int(np.ceil((min(end, last) - begin - NEAR) / unit)), 0))
            places = begin + count * unit
        beats.append(np.stack([places, count % numerator, 0 * count + numerator, 0 * count + unit]))
    grid = np.concatenate(beats, axis=1)
    grid[0] = np.maximum(tempos.seconds(grid[0]), 0.0)
    grid = grid[:, (grid[0] > start_s - 1e-4) & (grid[0] < end_s - 1e-4)]
    return Grid(np.maximum(grid[0], start_s), *grid[1:].astype(float))


class Beats(NamedTuple):
    """What is known of the beats of a whole score."""

    tempos: TempoMap
    metres: list[tuple[float, int, int]]  # from which second on; empty: not known


def known_beats(score: Score, facts: Facts, attributes: Mapping, tempo_factor: float) -> Beats | None:
    """The beats of ``score``, which was changed by ``tempo_factor``; None where its tempos do not say them.

    They do where its tempo can be trusted (``attributes`` are `musicldm.scores.facts.describe`'s), or its onsets lie on
    them.
    """
    tempos = tempo_map(score, DEFAULT_TEMPO * tempo_factor)
    stated = attributes["tempo_steady"] is not None and facts.tempo_qpm is None
    if not stated and not on_grid(score, tempos):
        return None
    return Beats(tempos, [metre for metre in score.metres if is_metre(*metre[1:])] if facts.metre else [])


def clip_score(score: Score, stretches: Sequence[tuple[float, float]], beats: Beats | None) -> Score:
    """What sounds in ``stretches`` (start_s, end_s) of ``score``, joined, in the seconds of the clip that they make.

    Notes that sound across an end of the clip are shortened. Controllers that were set before it are set at 0 s.
    Without ``beats`` it has neither tempos nor metres.
    """
    first, last = stretches[0][0], stretches[-1][1]
    knots = np.array(stretches).ravel()
    lengths = np.stack([knots[1::2] - knots[::2], np.zeros(len(stretches))], axis=1).ravel()
    places = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])

    def placed(times_s: np.ndarray | float) -> np.ndarray:
        return np.interp(times_s, knots, places)

    notes = score.notes[(score.notes["start_s"] < last) & (score.notes["end_s"] > first)].copy()
    notes["start_s"], notes["end_s"] = placed(notes["start_s"]), placed(notes["end_s"])
    controls: list[tuple[float, mido.Message]] = [(0.0, message) for message in state(score.controls, first)]
    controls += [(float(placed(time)), message) for time, message in score.controls if first <= time < last]
    tempos, metres = [], []
    for (start_s, end_s), place in zip(stretches, places[::2], strict=True):
        if beats is not None:
            tempos += [(place + time, rate) for time, rate in _tempos(beats.tempos, start_s, end_s)]
            metres += [(place + time, n, d) for time, n, d in _metres(beats, start_s, end_s)]
    notes = notes[notes["end_s"] > notes["start_s"]]
    return Score(notes, controls, np.array(tempos).reshape(-1, 2), metres, [])


def _tempos(tempos: TempoMap, start_s: float, end_s: float) -> list[tuple[float, float]]:
    """(seconds from ``start_s``, quarter notes a minute) between two times."""
    begin = max(int(np.searchsorted(tempos.starts, start_s, side="right")) - 1, 0)
    within = zip(tempos.starts[begin:].tolist(), tempos.rates[begin:].tolist(), strict=True)
    return [(max(time - start_s, 0.0), 60 * rate) for time, rate in within if time < end_s]


def _metres(beats: Beats, start_s: float, end_s: float) -> list[tuple[float, int, int]]:
    """(seconds from ``start_s``, numerator, denominator) between two times, again at the first downbeat."""
    stated = [(0.0, *PULSE)] if not beats.metres or beats.metres[0][0] > start_s else []
    stated += beats.metres
    begin = max(i for i, (time, _, _) in enumerate(stated) if time <= start_s + 1e-6 or i == 0)
    time, numerator, denominator = stated[begin]
    later = [(t - start_s, n, d) for t, n, d in stated[begin + 1 :] if start_s < t < end_s]
    anchor, bar = float(beats.tempos.quarters(time)), numerator * 4 / denominator
    bars = np.ceil((float(beats.tempos.quarters(start_s)) - anchor) / bar - NEAR)
    downbeat_s = float(beats.tempos.seconds(anchor + bars * bar)) - start_s
    result = [(0.0, numerator, denominator)]
    if downbeat_s > 1e-4 and not (later and later[0][0] < downbeat_s + 1e-4):
        result.append((downbeat_s, numerator, denominator))
    return result + later
