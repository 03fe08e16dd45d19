"""Copied phrases: two recordings laid over each other at every offset, transposition and tempo.

    waveform (L,) -> semitone bands (T, P), 5 frames a second -> whitened -> cross-similarity -> best passage of 2 s up

A phrase that was transposed, slowed or put under other music keeps its pattern of pitches over time.
After Serra et al. (2009), Cross recurrence quantification for cover song identification; bands of one semitone stand in
for chroma and mel at once, as a transposition shifts them without folding octaves together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from musicldm.evaluate.measurements import pitch_bands

FRAMES_PER_S = 5.0
LOWEST, HIGHEST = 36, 95  # MIDI
BANDS = HIGHEST - LOWEST + 1
RANGE_DB = 60.0  # below the loudest point; kept in 255 steps
WINDOWS_S = (2.0, 4.0, 8.0)  # passages that are looked for
TRANSPOSITIONS = tuple(range(-3, 4))  # semitones
TEMPI = (0.95, 0.97, 0.985, 1.0, 1.015, 1.03, 1.05)
WINDOWS = tuple(round(seconds * FRAMES_PER_S) for seconds in WINDOWS_S)  # frames
BLOCK = 250  # candidates compared roughly at a time
SHORTLIST = 10  # candidates that are compared at every tempo
ENVELOPE = 9  # bands over which the spectral envelope is taken


class Match(NamedTuple):
    """The passage of two recordings that agrees best."""

    score: float  # about 0 for unrelated music; correlation times the square root of the length in windows of 2 s
    candidate: int  # which of those compared
    start_s: float  # in the candidate
    query_start_s: float
    duration_s: float
    semitones: int  # by which the query lies above the candidate
    tempo: float  # by which the query is faster


def pitch_frames(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Levels ``(T, P)`` uint8 of ``waveform (L,)`` in semitone bands, 255 for the loudest: 300 bytes a second."""
    bands = pitch_bands(waveform, sample_rate, FRAMES_PER_S, LOWEST, HIGHEST)
    loudest = bands.max()
    if loudest <= 0:
        return np.zeros(bands.shape, np.uint8)
    level = 1 + 20 * np.log10(np.maximum(bands / loudest, 1e-6)) / RANGE_DB
    return np.round(255 * level.clip(0, 1)).astype(np.uint8)


def whiten(frames: np.ndarray) -> np.ndarray:
    """``frames (T, P)`` as unit vectors of what stands out from the spectral envelope and from the whole passage."""
    from scipy.ndimage import uniform_filter1d

    x = frames.astype(np.float32) / 255
    x = (x - uniform_filter1d(x, ENVELOPE, axis=1, mode="nearest")).clip(min=0)
    x = x - x.mean(axis=0, keepdims=True)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.maximum(lengths, max(1e-6, 0.5 * float(np.median(lengths))))  # faint frames count less


def best_match(query: np.ndarray, candidates: list[np.ndarray]) -> Match:
    """Where ``query (T, P)`` agrees best with one of ``candidates``, each ``(T', P)`` from `pitch_frames`.

    All are compared at the query's own tempo, the best `SHORTLIST` of them at every tempo: about T times the
    candidates' frames times 7 (transpositions) multiplications of P-vectors, and little more.

    Raises:
        ValueError: if there are no candidates, or the query is shorter than 2 s.
    """
    if not candidates:
        raise ValueError("there is nothing to compare the query with")
    if len(query) < WINDOWS[0]:
        raise ValueError(f"a query of {len(query) / FRAMES_PER_S:g} s is shorter than {WINDOWS_S[0]:g} s")
    white, chosen = whiten(query), list(range(len(candidates)))
    references = [whiten(candidate) for candidate in candidates]
    if len(candidates) > SHORTLIST:
        blocks = range(0, len(references), BLOCK)
        scores = np.concatenate([_rough_scores(white, references[first : first + BLOCK]) for first in blocks])
        chosen = sorted(np.argsort(-scores, kind="stable")[:SHORTLIST].tolist())
    best = max(
        (match for tempo in TEMPI for match in _matches(white, [references[i] for i in chosen], tempo)),
        key=lambda match: match.score,
    )
    return best._replace(candidate=chosen[best.candidate])


def _rough_scores(query: np.ndarray, references: list[np.ndarray]) -> np.ndarray:
    """Best score (N,) of the whitened ``query`` against each of ``references`` at its own tempo, windows up to 4 s."""
    row, starts, gap = _in_a_row(references, len(query))
    best = np.full(len(row), -np.inf, np.float32)
    for semitones in TRANSPOSITIONS:
        sums = _diagonal_sums(_shift(query, -semitones), row)
        for length in [n for n in WINDOWS[:-1] if n <= len(query)]:
            best = np.maximum(best, (sums[length:] - sums[:-length]).max(axis=0) / np.sqrt(length * WINDOWS[0]))
    pairs = zip(starts, references, strict=True)
    return np.array([best[start - gap : start + len(reference)].max() for start, reference in pairs])


def _matches(query: np.ndarray, references: list[np.ndarray], tempo: float) -> list[Match]:
    """The best passage of the whitened ``query`` and each of ``references`` at one tempo, over all transpositions."""
    stretched = _stretch(query, tempo)
    row, starts, gap = _in_a_row(references, len(stretched))
    found: list[Match | None] = [None] * len(references)
    for semitones in TRANSPOSITIONS:
        scores, first, frames = _diagonals(_shift(stretched, -semitones), row)
        for i, (start, reference) in enumerate(zip(starts, references, strict=True)):
            at = start - gap + int(scores[start - gap : start + len(reference)].argmax())  # where the query's 0 lies
            if found[i] is None or scores[at] > found[i].score:
                found[i] = Match(
                    score=float(scores[at]),
                    candidate=i,
                    start_s=max(0, at + int(first[at]) - start) / FRAMES_PER_S,
                    query_start_s=int(first[at]) / tempo / FRAMES_PER_S,
                    duration_s=int(frames[at]) / FRAMES_PER_S,
                    semitones=semitones,
                    tempo=tempo,
                )
    return found


def _in_a_row(references: list[np.ndarray], gap: int) -> tuple[np.ndarray, list[int], int]:
    """``references`` joined (R, P), silence around each so that no diagonal touches two; where they start; ``gap``."""
    silence = np.zeros((gap, BANDS), np.float32)
    starts = gap + np.cumsum([0, *(len(reference) + gap for reference in references[:-1])])
    return np.concatenate([silence, *(piece for each in references for piece in (each, silence))]), starts.tolist(), gap


def _diagonal_sums(query: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Similarity of ``query (T, P)`` and ``row (R, P)`` summed along diagonals (T + 1, R), by start in the row."""
    n, total = len(query), len(row)
    similarity = np.zeros((n, total + n), np.float32)
    np.matmul(query, row.T, out=similarity[:, :total])
    rows, columns = similarity.strides
    diagonals = np.lib.stride_tricks.as_strided(similarity, (n, total), (rows + columns, columns))  # [t, d]: d + t
    sums = np.zeros((n + 1, total), np.float32)
    np.cumsum(diagonals, axis=0, out=sums[1:])
    return sums


def _diagonals(query: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each place (R,) in ``row (R, P)`` where ``query (T, P)`` may start: best score, first frame, frames."""
    sums, total = _diagonal_sums(query, row), len(row)
    best = np.full(total, -np.inf, np.float32)
    first, frames = np.zeros(total, np.int32), np.full(total, WINDOWS[0], np.int32)
    for length in [n for n in WINDOWS if n <= len(query)]:
        scores = (sums[length:] - sums[:-length]) / np.sqrt(length * WINDOWS[0])
        start = scores.argmax(axis=0)
        highest = scores[start, np.arange(total)]
        better = highest > best
        best[better], first[better], frames[better] = highest[better], start[better], length
    return best, first, frames


def _stretch(frames: np.ndarray, tempo: float) -> np.ndarray:
    """``frames (T, P)`` played ``tempo`` times slower, (T * tempo, P)."""
    if tempo == 1.0:
        return frames
    at = np.arange(int(len(frames) * tempo)) / tempo
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
