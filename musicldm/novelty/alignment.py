"""Search for copied passages: two recordings are compared at every offset, transposition and tempo.

    waveform (L,) -> semitone bands (T, P), 5 frames a second -> whitened -> cross-similarity -> best passage of 2 s up
                                                          -> levels around that passage -> a second score

A passage that was transposed, slowed down or mixed with other music keeps its pattern of pitches over time.
After Serra et al. (2009), Cross recurrence quantification for cover song identification, with bands of one semitone
instead of chroma: a transposition shifts them, and octaves stay apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from musicldm.analysis.key import pitch_bands
from musicldm.novelty.levels import ENVELOPE, RANGE_DB, confirmation

FRAMES_PER_S = 5.0
LOWEST, HIGHEST = 36, 95  # MIDI
BANDS = HIGHEST - LOWEST + 1
WINDOWS_S = (2.0, 4.0, 8.0)  # lengths of passages
TRANSPOSITIONS = tuple(range(-3, 4))  # semitones
TEMPI = (0.95, 0.97, 0.985, 1.0, 1.015, 1.03, 1.05)
CHANGED_TEMPO = 0.98  # factor of scores at another tempo, at which short passages fit by chance too
WINDOWS = tuple(round(seconds * FRAMES_PER_S) for seconds in WINDOWS_S)  # frames
BLOCK = 250  # candidates per batch of the rough comparison
SHORTLIST = 10  # candidates that are compared at every tempo
BLUR = 0.7  # bands, standard deviation: music of a model comes from a mel spectrogram, whose low bands are wide
HELD = 0.7  # share of the previous frame that is subtracted: held notes say little, beginnings and ends much
PHASES = (0.0, 0.5)  # offsets of the query's time grid from the candidate's, in frames
CONFIRMED_FROM = 0.33  # least score of passages whose levels are compared; unrelated clips rarely reach it


class Match(NamedTuple):
    """The best matching passage of two recordings."""

    score: float  # correlation times the square root of the length in windows of 2 s, plus ``by_levels``
    candidate: int  # index of the candidate
    start_s: float  # in the candidate
    query_start_s: float
    duration_s: float
    semitones: int  # transposition of the query relative to the candidate
    tempo: float  # speed of the query relative to the candidate
    by_levels: float  # contribution of levels to the score: 0 for nearly all unrelated music


class Placed(NamedTuple):
    """Alignment of a query and a candidate at their best match."""

    score: float
    tempo: float
    phase: float  # frames
    semitones: int
    offset: int  # frame of the candidate at the first frame of the query
    first: int  # frame of the query where the passage begins
    frames: int

    @property
    def worth(self) -> float:
        return self.score if self.tempo == 1.0 else CHANGED_TEMPO * self.score


def pitch_frames(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Levels ``(T, P)`` uint8 of ``waveform (L,)`` in semitone bands, 255 for the loudest: 300 bytes a second."""
    bands = pitch_bands(waveform, sample_rate, FRAMES_PER_S, LOWEST, HIGHEST)
    loudest = bands.max()
    if loudest <= 0:
        return np.zeros(bands.shape, np.uint8)
    level = 1 + 20 * np.log10(np.maximum(bands / loudest, 1e-6)) / RANGE_DB
    return np.round(255 * level.clip(0, 1)).astype(np.uint8)


def whiten(frames: np.ndarray) -> np.ndarray:
    """``frames (T, P)`` as unit vectors of the changes of what stands out from the spectral envelope.

    Music hardly changes from frame to frame, so it correlates for a while with any music that holds the same notes.
    With neighbours in time and frequency decorrelated, correlation is the optimal test for a pattern in noise of its
    kind (matched filter). The square root weighs the presence of a partial more than its level, which VAE and vocoder
    change.
    """
    from scipy.ndimage import gaussian_filter1d, uniform_filter1d

    x = gaussian_filter1d(frames.astype(np.float32) / 255, BLUR, axis=1, mode="nearest")
    x = np.sqrt((x - uniform_filter1d(x, ENVELOPE, axis=1, mode="nearest")).clip(min=0))
    sounding = _weights(x)  # without weights, all silent frames would equal minus the mean and match each other
    x[1:] -= HELD * x[:-1]
    x -= sounding * x.mean(axis=0, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6) * _weights(x)


def _weights(frames: np.ndarray) -> np.ndarray:
    """Weight (T, 1) of each of ``frames (T, P)``: 1 from half the usual norm upwards, less below, 0 for silence."""
    lengths = np.linalg.norm(frames, axis=1, keepdims=True)
    heard = lengths[lengths > 1e-6]
    return np.minimum(1, lengths / (0.5 * np.median(heard))) if len(heard) else np.zeros_like(lengths)


def best_match(query: np.ndarray, candidates: list[np.ndarray]) -> Match:
    """The best match of ``query (T, P)`` among ``candidates``, each ``(T', P)`` from `pitch_frames`.

    All are compared at the query's own tempo, the best `SHORTLIST` at every tempo with `matches`. The cost is about
    7 T (transpositions times frames) products of P-vectors for each frame of the candidates.

    Raises:
        ValueError: if there are no candidates, or the query is shorter than 2 s.
    """
    if not candidates:
        raise ValueError("there are no candidates to compare the query with; give at least one")
    check_length(query)
    chosen = np.arange(len(candidates))
    if len(candidates) > SHORTLIST:
        scores = rough_scores(query, [whiten(candidate) for candidate in candidates])
        chosen = np.sort(np.argsort(-scores, kind="stable")[:SHORTLIST])
    found = matches(query, [candidates[i] for i in chosen])
    best = max(found, key=lambda one: one.score if one.tempo == 1.0 else CHANGED_TEMPO * one.score)
    return best._replace(candidate=int(chosen[best.candidate]))


def check_length(query: np.ndarray) -> None:
    """Raise ValueError if ``query (T, P)`` is shorter than 2 s."""
    if len(query) < WINDOWS[0]:
        raise ValueError(
            f"a query of {len(query) / FRAMES_PER_S:g} s is shorter than {WINDOWS_S[0]:g} s; give a longer recording"
        )


def matches(query: np.ndarray, candidates: list[np.ndarray]) -> list[Match]:
    """The best match of ``query (T, P)`` with each of ``candidates``: all tempi, transpositions, half-frame offsets."""
    check_length(query)
    found = []
    for i, (placed, candidate) in enumerate(zip(_place(query, candidates), candidates, strict=True)):
        more = _confirmed(query, candidate, placed) if placed.score >= CONFIRMED_FROM else 0.0
        found.append(
            Match(
                score=placed.score + more,
                candidate=i,
                start_s=max(0, placed.offset + placed.first) / FRAMES_PER_S,
                query_start_s=(placed.first / placed.tempo + placed.phase) / FRAMES_PER_S,
                duration_s=placed.frames / FRAMES_PER_S,
                semitones=placed.semitones,
                tempo=placed.tempo,
                by_levels=more,
            )
        )
    return found


def _place(query: np.ndarray, candidates: list[np.ndarray]) -> list[Placed]:
    """The best alignment of ``query (T, P)`` with each of ``candidates``."""
    gap = round(len(query) * max(TEMPI))
    row, starts = _in_a_row([whiten(candidate) for candidate in candidates], gap)
    ends = np.append(starts[1:], len(row))
    best: list[Placed | None] = [None] * len(candidates)
    worth = np.full(len(candidates), -np.inf)
    for tempo, phase in [(tempo, phase) for tempo in TEMPI for phase in PHASES]:
        stretched = whiten(_stretch(query, tempo, phase))
        for semitones in TRANSPOSITIONS:
            sums = _diagonal_sums(_shift(stretched, -semitones), row)
            for length in [n for n in WINDOWS if n <= len(stretched)]:
                scores = _passages(sums, length)
                highest = scores.max(axis=0)
                tops = np.maximum.reduceat(highest, starts) * (1.0 if tempo == 1.0 else CHANGED_TEMPO)
                for i in np.flatnonzero(tops > worth):
                    at = int(starts[i] + highest[starts[i] : ends[i]].argmax())
                    first, offset = int(scores[:, at].argmax()), at - int(starts[i]) - gap
                    best[i] = Placed(float(highest[at]), tempo, phase, semitones, offset, first, length)
                    worth[i] = tops[i]
    return best


def _confirmed(query: np.ndarray, candidate: np.ndarray, placed: Placed) -> float:
    """Contribution of levels to the score, where ``query`` and ``candidate`` overlap when aligned as ``placed``."""
    heard = _shift(_stretch(query, placed.tempo, placed.phase), -placed.semitones)
    from_, to = max(0, -placed.offset), min(len(heard), len(candidate) - placed.offset)
    return confirmation(heard[from_:to], candidate[from_ + placed.offset : to + placed.offset])


def rough_scores(query: np.ndarray, references: list[np.ndarray]) -> np.ndarray:
    """Best score (N,) of ``query (T, P)`` in each whitened reference, at its own tempo, for passages up to 4 s."""
    white, blocks = whiten(query), range(0, len(references), BLOCK)
    return np.concatenate([_rough_scores(white, references[first : first + BLOCK]) for first in blocks])


def _rough_scores(query: np.ndarray, references: list[np.ndarray]) -> np.ndarray:
    """`rough_scores` of the whitened ``query`` for one batch of references."""
    row, starts = _in_a_row(references, len(query))
    best = np.full(len(row), -np.inf, np.float32)
    for semitones in TRANSPOSITIONS:
        sums = _diagonal_sums(_shift(query, -semitones), row)
        for length in [n for n in WINDOWS[:-1] if n <= len(query)]:
            best = np.maximum(best, _passages(sums, length).max(axis=0))
    return np.maximum.reduceat(best, starts)


def _in_a_row(references: list[np.ndarray], gap: int) -> tuple[np.ndarray, np.ndarray]:
    """``references`` joined (R, P), ``gap`` silent frames before each and after the last; where these gaps start (N,).

    A query no longer than the gap that is laid at any place between two starts touches no other reference.
    """
    silence = np.zeros((gap, BANDS), np.float32)
    starts = np.cumsum([0, *(gap + len(reference) for reference in references[:-1])])
    return np.concatenate([*(piece for each in references for piece in (silence, each)), silence]), starts


def _diagonal_sums(query: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Similarity of ``query (T, P)`` and ``row (R, P)`` summed along diagonals (T + 1, R), by start in the row."""
    similarity, total = query @ row.T, len(row)
    sums = np.zeros((len(query) + 1, total), np.float32)
    for t, values in enumerate(similarity):
        sums[t + 1] = sums[t]
        sums[t + 1, : total - t] += values[t:]
    return sums


def _passages(sums: np.ndarray, length: int) -> np.ndarray:
    """Scores (T - length + 1, R) of passages of ``length`` frames, by first frame of the query and its place."""
    return (sums[length:] - sums[:-length]) / np.float32(np.sqrt(length * WINDOWS[0]))


def _stretch(frames: np.ndarray, tempo: float, phase: float) -> np.ndarray:
    """``frames (T, P)`` from ``phase`` on, played ``tempo`` times slower, ((T - phase) * tempo, P)."""
    at = np.arange(int((len(frames) - phase) * tempo)) / tempo + phase
    low = np.minimum(at.astype(int), len(frames) - 2)
    share = (at - low)[:, None].clip(0, 1).astype(np.float32)
    return (1 - share) * frames[low] + share * frames[low + 1]


def _shift(frames: np.ndarray, bands: int) -> np.ndarray:
    shifted = np.zeros_like(frames)
    if bands > 0:
        shifted[:, bands:] = frames[:, :-bands]
    elif bands < 0:
        shifted[:, :bands] = frames[:, -bands:]
    else:
        return frames
    return shifted
