"""Copied phrases: two recordings laid over each other at every offset, transposition and tempo.

    waveform (L,) -> semitone bands (T, P), 5 frames a second -> whitened -> cross-similarity -> best passage of 2 s up

A phrase that was transposed, slowed or put under other music keeps its pattern of pitches over time.
After Serra et al. (2009), Cross recurrence quantification for cover song identification; bands of one semitone stand in
for chroma and mel at once, as a transposition shifts them without folding octaves together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from musicldm.analysis.key import pitch_bands

FRAMES_PER_S = 5.0
LOWEST, HIGHEST = 36, 95  # MIDI
BANDS = HIGHEST - LOWEST + 1
RANGE_DB = 60.0  # below the loudest point; kept in 255 steps
WINDOWS_S = (2.0, 4.0, 8.0)  # passages that are looked for
TRANSPOSITIONS = tuple(range(-3, 4))  # semitones
TEMPI = (0.95, 0.97, 0.985, 1.0, 1.015, 1.03, 1.05)
CHANGED_TEMPO = 0.98  # what a score at another tempo is worth: short passages fit a little faster or slower too
WINDOWS = tuple(round(seconds * FRAMES_PER_S) for seconds in WINDOWS_S)  # frames
BLOCK = 250  # candidates compared roughly at a time
SHORTLIST = 10  # candidates that are compared at every tempo
ENVELOPE = 11  # bands over which the spectral envelope is taken
BLUR = 0.7  # bands, standard deviation: what a model played was a mel spectrogram once, whose low bands are wide
HELD = 0.7  # of a frame that the one before tells; what is held says little, what begins or ends says much
PHASES = (0.0, 0.5)  # frames by which the query's grid in time may lie off the candidate's


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
    """``frames (T, P)`` as unit vectors of what stands out from the spectral envelope, and is new or gone.

    Music hardly changes from frame to frame, and so agrees for a while with all music that holds the same notes. With
    neighbours in time and in bands made independent, correlation is the best test of a pattern under another of its
    kind (the matched filter). The square root lets a partial count more for being there than for its level, which an
    autoencoder and a vocoder change.
    """
    from scipy.ndimage import gaussian_filter1d, uniform_filter1d

    x = gaussian_filter1d(frames.astype(np.float32) / 255, BLUR, axis=1, mode="nearest")
    x = np.sqrt((x - uniform_filter1d(x, ENVELOPE, axis=1, mode="nearest")).clip(min=0))
    sounding = _weights(x)  # silence has no notes: without weights all of it would be minus the mean, and so alike
    x[1:] -= HELD * x[:-1]
    x -= sounding * x.mean(axis=0, keepdims=True)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6) * _weights(x)


def _weights(frames: np.ndarray) -> np.ndarray:
    """What each of ``frames (T, P)`` counts, (T, 1): 1 from half the usual norm up, less below, 0 for silence."""
    lengths = np.linalg.norm(frames, axis=1, keepdims=True)
    heard = lengths[lengths > 1e-6]
    return np.minimum(1, lengths / (0.5 * np.median(heard))) if len(heard) else np.zeros_like(lengths)


def best_match(query: np.ndarray, candidates: list[np.ndarray]) -> Match:
    """Where ``query (T, P)`` agrees best with one of ``candidates``, each ``(T', P)`` from `pitch_frames`.

    All are compared at the query's own tempo, the best `SHORTLIST` of them at every tempo and on a grid half a frame
    off too: about T times the candidates' frames times 7 (transpositions) multiplications of P-vectors and little
    more.

    Raises:
        ValueError: if there are no candidates, or the query is shorter than 2 s.
    """
    if not candidates:
        raise ValueError("there is nothing to compare the query with")
    if len(query) < WINDOWS[0]:
        raise ValueError(f"a query of {len(query) / FRAMES_PER_S:g} s is shorter than {WINDOWS_S[0]:g} s")
    references, chosen = [whiten(candidate) for candidate in candidates], np.arange(len(candidates))
    if len(candidates) > SHORTLIST:
        blocks = range(0, len(references), BLOCK)
        scores = np.concatenate([_rough_scores(whiten(query), references[first : first + BLOCK]) for first in blocks])
        chosen = np.sort(np.argsort(-scores, kind="stable")[:SHORTLIST])
    gap = round(len(query) * max(TEMPI))
    row, starts = _in_a_row([references[i] for i in chosen], gap)
    best, highest = None, -np.inf
    for tempo, phase in [(tempo, phase) for tempo in TEMPI for phase in PHASES]:
        stretched = whiten(_stretch(query, tempo, phase))
        for semitones in TRANSPOSITIONS:
            score, at, first, frames = _best_passage(_shift(stretched, -semitones), row)
            worth = score if tempo == 1.0 else CHANGED_TEMPO * score
            if worth > highest:
                highest, number = worth, int(np.searchsorted(starts, at, side="right")) - 1
                best = Match(
                    score=score,
                    candidate=int(chosen[number]),
                    start_s=max(0, at + first - int(starts[number]) - gap) / FRAMES_PER_S,
                    query_start_s=(first / tempo + phase) / FRAMES_PER_S,
                    duration_s=frames / FRAMES_PER_S,
                    semitones=semitones,
                    tempo=tempo,
                )
    return best


def _rough_scores(query: np.ndarray, references: list[np.ndarray]) -> np.ndarray:
    """Best score (N,) of the whitened ``query`` against each of ``references`` at its own tempo, windows up to 4 s."""
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


def _best_passage(query: np.ndarray, row: np.ndarray) -> tuple[float, int, int, int]:
    """Best score of a passage of the whitened ``query (T, P)`` in ``row (R, P)``; place, first frame, frames."""
    sums, best = _diagonal_sums(query, row), (-np.inf, 0, 0, WINDOWS[0])
    for length in [n for n in WINDOWS if n <= len(query)]:
        scores = _passages(sums, length)
        highest = scores.max(axis=0)
        at = int(highest.argmax())
        if highest[at] > best[0]:
            best = float(highest[at]), at, int(scores[:, at].argmax()), length
    return best


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
