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

    Takes about T times the candidates' frames times 49 (transpositions and tempi) multiplications of P-vectors.

    Raises:
        ValueError: if there are no candidates, or the query is shorter than 2 s.
    """
    shortest = round(WINDOWS_S[0] * FRAMES_PER_S)
    if not candidates:
        raise ValueError("there is nothing to compare the query with")
    if len(query) < shortest:
        raise ValueError(f"a query of {len(query) / FRAMES_PER_S:g} s is shorter than {WINDOWS_S[0]:g} s")
    gap = len(query) + 4  # no diagonal touches two candidates
    starts, pieces, position = [], [np.zeros((gap, BANDS), np.float32)], gap
    for candidate in candidates:
        starts.append(position)
        pieces += [whiten(candidate), np.zeros((gap, BANDS), np.float32)]
        position += len(candidate) + gap
    reference = np.concatenate(pieces)  # (R, P)
    best = None
    white = whiten(query)
    for tempo in TEMPI:
        stretched = _stretch(white, tempo)
        for semitones in TRANSPOSITIONS:
            found = _best_diagonal(_shift(stretched, -semitones), reference)
            if best is None or found[0] > best[0]:
                best = (*found, semitones, tempo)
    score, first, column, length, semitones, tempo = best
    candidate = int(np.searchsorted(starts, column + length / 2, side="right") - 1)
    return Match(
        score=float(score),
        candidate=max(candidate, 0),
        start_s=max(0.0, (column - starts[max(candidate, 0)]) / FRAMES_PER_S),
        query_start_s=first / tempo / FRAMES_PER_S,
        duration_s=length / FRAMES_PER_S,
        semitones=semitones,
        tempo=tempo,
    )


def _best_diagonal(query: np.ndarray, reference: np.ndarray) -> tuple[float, int, int, int]:
    """Score, first frame in the query, frame in the reference, and frames of the best passage."""
    n, total = len(query), len(reference)
    similarity = np.zeros((n, total + n), np.float32)
    similarity[:, :total] = query @ reference.T
    rows, columns = similarity.strides
    diagonals = np.lib.stride_tricks.as_strided(similarity, (n, total), (rows + columns, columns))  # [t, d]: d + t
    sums = np.concatenate([np.zeros((1, total), np.float32), np.cumsum(diagonals, axis=0)])
    shortest = round(WINDOWS_S[0] * FRAMES_PER_S)
    best = (-np.inf, 0, 0, shortest)
    for seconds in WINDOWS_S:
        length = round(seconds * FRAMES_PER_S)
        if length > n:
            break
        scores = (sums[length:] - sums[:-length]) / np.sqrt(length * shortest)
        first, offset = divmod(int(scores.argmax()), total)
        if scores[first, offset] > best[0]:
            best = (scores[first, offset], first, offset + first, length)
    return best


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
