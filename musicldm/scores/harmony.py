"""The chord symbols of a stretch of music, and chords played on its beats.

    notes, beats  -> chord_symbols ->  (symbol, first beat, end beat), ...  -> play_chords ->  notes

Each unit, a bar or half of one, is compared with chords by how long and how loud its pitch classes sound and what its
bass is; the best sequence keeps a chord where it fits.
"""

from typing import NamedTuple

import numpy as np

from musicldm.scores.beats import Grid
from musicldm.scores.chords import parse_chord, voiced
from musicldm.scores.parts import pitched
from musicldm.scores.reading import NOTE
from musicldm.scores.sketches import Rhythm, played

ROOTS = ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
QUALITIES = ("", "m", "7", "maj7", "m7", "dim", "m7b5", "sus4", "aug")
TRIADS = {"7": "", "maj7": "", "m7": "m", "m7b5": "dim"}
COST = {"7": 0.03, "maj7": 0.03, "m7": 0.03, "dim": 0.06, "m7b5": 0.06, "sus4": 0.08, "aug": 0.12}  # rarer chords
ABSENT = (0.2, 0.15, 0.05, 0.2)  # for a root, third, fifth or seventh that is not heard
HEARD = 0.04  # of all weight, of a pitch class that is heard
BASS_IS_ROOT = 0.25
CHANGE, CHANGE_WITHIN = 0.1, 0.18  # for another chord at a bar line, and within a bar
SILENCE = 0.05  # weight of a unit, relative to the median, below which it has no chord
BASS_FALL = 4.0  # semitones above the lowest note by which a note counts half as bass
UPBEAT_S = 0.05  # before the first beat, from which what sounds there is a unit of its own
INVERTED = 0.7  # of the bass on one other tone of the chord, from which it is a slash chord


class Placed(NamedTuple):
    """A chord and the beats, counted from the first of the grid, from and to which it holds."""

    symbol: str
    first: int
    end: int


def _templates() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Symbols, tones (S, 12) and (S, 4) the pitch class of root, third, fifth and seventh, -1 without one."""
    symbols, tones, members = [], [], []
    for quality in QUALITIES:
        for root in ROOTS:
            chord = parse_chord(root + quality)
            symbols.append(chord.symbol)
            tones.append(np.isin(np.arange(12), chord.tones))
            members.append([*chord.tones, -1][:4])
    return symbols, np.array(tones, float), np.array(members)


SYMBOLS, TONES, MEMBERS = _templates()


def chord_symbols(notes: np.ndarray, grid: Grid) -> list[Placed]:
    """The chords of ``notes``, from 0 s, over the beats of ``grid``; stretches without any are left out."""
    notes = pitched(notes)
    if not len(notes) or len(grid.times_s) < 2:
        return []
    edges = [*_units(grid), len(grid.times_s)]
    bounds = beat_times(grid, np.array(edges, float))
    weight, bass = _weights(notes, bounds)  # (U, 12) each
    path = _best(weight, bass, [bool(grid.place[max(edge, 0)] == 0) for edge in edges[:-1]])
    placed: list[Placed] = []
    for unit, state in enumerate(path):
        if state < 0:
            continue
        first, end = edges[unit], edges[unit + 1]
        symbol = SYMBOLS[state] + _slash(state, bass[unit])
        if placed and placed[-1].end == first and placed[-1].symbol == symbol:
            placed[-1] = placed[-1]._replace(end=end)
        else:
            placed.append(Placed(symbol, first, end))
    return placed


def triad(symbol: str) -> str:
    """``symbol`` of `chord_symbols` without its seventh and its other bass."""
    symbol = symbol.split("/")[0]
    root = next(root for root in sorted(ROOTS, key=len, reverse=True) if symbol.startswith(root))
    return root + TRIADS.get(symbol.removeprefix(root), symbol.removeprefix(root))


def play_chords(placed: list[Placed], grid: Grid, rhythm: Rhythm) -> np.ndarray:
    """Notes of the chords at the times of the beats, as `musicldm.scores.Sketch.from_chords` plays them."""
    notes: list[tuple] = []
    pitches: tuple[int, ...] = ()
    for symbol, first, end in placed:
        pitches = voiced(parse_chord(symbol), pitches)
        notes += played(pitches, first, end, 1.0, rhythm)
    table = np.sort(np.array(notes, dtype=NOTE), order=["start_s", "pitch"])
    table["start_s"], table["end_s"] = (beat_times(grid, table[name]) for name in ("start_s", "end_s"))
    return table


def beat_times(grid: Grid, beats: np.ndarray) -> np.ndarray:
    """Seconds of ``beats``, counted from the first of ``grid``, those beyond its ends at the tempo there."""
    times = grid.times_s
    before, after = times[1] - times[0], times[-1] - times[-2]
    inside = np.interp(beats, np.arange(len(times)), times)
    return inside + np.minimum(beats, 0) * before + np.maximum(beats - (len(times) - 1), 0) * after


def _units(grid: Grid) -> list[int]:
    """Beats at which units begin: bars, or their halves where they have an even number of beats, four or more.

    The first one begins at 0 s or before. Beats without bars are taken four by four.
    """
    bars = grid.of if (grid.of > 1).any() else np.full(len(grid.of), 4.0)
    place = grid.place if (grid.of > 1).any() else np.arange(len(grid.of)) % 4
    length = np.where((bars % 2 == 0) & (bars >= 4) & (grid.of > 1), bars // 2, bars).astype(int)
    within = place.astype(int) % length
    begins = np.flatnonzero(within == 0).tolist()
    if within[0] > 0:
        return [-int(within[0]), *begins]
    return [-int(length[0]), *begins] if grid.times_s[0] > UPBEAT_S else begins


def _weights(notes: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much each pitch class sounds in each of the units between ``bounds``, and sounds as its bass: (U, 12)."""
    begins = np.maximum(notes["start_s"], bounds[:-1, None])
    lasting = (np.minimum(notes["end_s"], bounds[1:, None]) - begins).clip(0)  # (U, N)
    lasting = lasting * (notes["velocity"] / 127 * np.maximum(notes["level"], 0.1))
    lowest = np.where(lasting > 0, notes["pitch"], 127).min(axis=1, keepdims=True)
    deep = lasting * 2.0 ** (-(notes["pitch"] - lowest) / BASS_FALL)
    classes = np.eye(12)[notes["pitch"] % 12]  # (N, 12)
    return lasting @ classes, deep @ classes


def _best(weight: np.ndarray, bass: np.ndarray, at_bar: list[bool]) -> list[int]:
    """The best chord of each unit, -1 for none, by dynamic programming."""
    total = weight.sum(axis=1, keepdims=True)
    share = weight / np.maximum(total, 1e-9)
    deep = bass / np.maximum(bass.sum(axis=1, keepdims=True), 1e-9)
    missing = (share[:, MEMBERS] < HEARD) & (MEMBERS >= 0)  # (U, S, 4)
    rare = np.array([COST.get(symbol.removeprefix(ROOTS[i % 12]), 0.0) for i, symbol in enumerate(SYMBOLS)])
    fit = share @ TONES.T - missing @ np.array(ABSENT) - rare + BASS_IS_ROOT * deep[:, MEMBERS[:, 0]]  # (U, S)
    silent = total[:, 0] < SILENCE * np.median(total[total > 0]) if total.any() else np.ones(len(total), bool)
    best, back = fit[0], []
    for unit in range(1, len(fit)):
        change = CHANGE if at_bar[unit] else CHANGE_WITHIN
        other = int(np.argmax(best))
        stays = best >= best[other] - change
        back.append(np.where(stays, np.arange(len(best)), other))
        best = np.where(stays, best, best[other] - change) + fit[unit]
    path = [int(np.argmax(best))]
    for step in reversed(back):
        path.append(int(step[path[-1]]))
    return [-1 if quiet else state for state, quiet in zip(reversed(path), silent, strict=True)]


def _slash(state: int, bass: np.ndarray) -> str:
    """``/E`` where another tone than the root is the bass."""
    lowest = int(np.argmax(bass))
    root = int(MEMBERS[state, 0])
    inverted = lowest != root and TONES[state, lowest] and bass[lowest] > INVERTED * bass.sum()
    return f"/{ROOTS[lowest]}" if inverted else ""
