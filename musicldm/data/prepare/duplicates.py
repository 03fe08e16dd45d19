"""Finds copies of the same recording at another gain, rate, compression or start.

    waveform (L,)  ->  energy of 33 bands over time  ->  one 32-bit word every 32 ms  ->  pairs that share words

Haitsma and Kalker (2002), A Highly Robust Audio Fingerprinting System, ISMIR. A bit says whether the difference of two
neighbouring bands grew; gain cancels, and frames of 0.37 s make a shift by half a step hardly matter.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import stft

FRAME_S, HOP_S = 0.37, 0.032
BANDS, LOWEST_HZ, HIGHEST_HZ = 33, 300.0, 2000.0
SAME = 0.3  # share of bits that may differ between two copies; between different recordings it is about a half
LEAST_S = 3.0  # in common
LEAST_SHARE = 0.5  # of the shorter recording that two copies have in common
VOTES = 3  # words in common, at the same offset, before bits are compared
COMMON = 64  # words that occur more often are ignored


def fingerprint(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Words (T,) uint32 of ``waveform`` (L,), one every `HOP_S`; 0 in digital silence, empty below half a second.

    Raises:
        ValueError: if the rate is too low for the bands.
    """
    if sample_rate < 2 * HIGHEST_HZ:
        raise ValueError(
            f"a fingerprint needs {2 * HIGHEST_HZ:.0f} Hz or more, got {sample_rate} Hz; prepare at a higher rate"
        )
    hop, length = round(HOP_S * sample_rate), round(FRAME_S * sample_rate)
    if len(waveform) < length + 2 * hop:
        return np.empty(0, np.uint32)
    edges = np.geomspace(LOWEST_HZ, HIGHEST_HZ, BANDS + 1) * length / sample_rate
    starts = np.round(edges).astype(int)
    words, step = [], 2000 * hop  # a minute at a time
    for first in range(0, len(waveform) - length - hop, step):
        part = waveform[first : first + step + length]  # one frame more than words: each looks back one
        _, _, spectrum = stft(part, nperseg=length, noverlap=length - hop, boundary=None, padded=False)
        energy = np.add.reduceat(np.abs(spectrum[: starts[-1]]) ** 2, starts[:-1], axis=0)  # (BANDS, T)
        slope = np.diff(energy, axis=0)  # (32, T)
        bits = np.diff(slope, axis=1) > 0
        words.append((bits.T * (np.uint32(1) << np.arange(32, dtype=np.uint32))).sum(axis=1, dtype=np.uint32))
    return np.concatenate(words)


def find_duplicates(prints: list[np.ndarray]) -> list[tuple[int, int]]:
    """Sorted pairs (i, j), i < j, of ``prints`` (T,) that belong to the same recording."""
    votes = _votes(prints)
    pairs = []
    for (i, j), distances in sorted(votes.items()):
        found, counts = np.unique(distances, return_counts=True)
        for distance in found[np.argsort(-counts, kind="stable")][:3]:
            if _are_same(prints[i], prints[j], int(distance)):
                pairs.append((i, j))
                break
    return pairs


def _votes(prints: list[np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """Offsets (V,) between equal words, for pairs that share at least `VOTES` words."""
    words = np.concatenate([*prints, np.empty(0, np.uint32)])
    owner = np.repeat(np.arange(len(prints)), [len(p) for p in prints])
    place = np.concatenate([*(np.arange(len(p)) for p in prints), np.empty(0, int)])
    order = np.argsort(words, kind="stable")
    words, owner, place = words[order], owner[order], place[order]
    found = []
    for shift in range(1, COMMON):  # neighbours in the sorted list that are equal
        same = np.flatnonzero((words[shift:] == words[:-shift]) & (words[shift:] != 0))
        if not len(same):
            break
        i, j = owner[same], owner[same + shift]
        distance = place[same + shift] - place[same]
        other = i != j  # the stable sort keeps i < j
        found.append(np.stack([i[other], j[other], distance[other]], axis=1))
    rows = np.concatenate(found) if found else np.empty((0, 3), int)
    _, which, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    rows = rows[counts[which.ravel()] >= VOTES]
    pairs, which, counts = np.unique(rows[:, :2], axis=0, return_inverse=True, return_counts=True)
    distances = np.split(rows[np.argsort(which.ravel(), kind="stable"), 2], np.cumsum(counts)[:-1])
    return {(int(i), int(j)): some for (i, j), some in zip(pairs, distances, strict=False)}


def _are_same(a: np.ndarray, b: np.ndarray, distance: int) -> bool:
    """Whether ``b``, shifted by ``distance`` words, is the same recording as ``a``."""
    start = max(0, -distance)
    n = min(len(a) - start, len(b) - (start + distance))
    if n < max(LEAST_S / HOP_S, LEAST_SHARE * min(len(a), len(b))):
        return False
    one, other = a[start : start + n], b[start + distance : start + distance + n]
    heard = (one != 0) & (other != 0)
    if heard.sum() < LEAST_S / HOP_S:
        return False
    return bool(np.bitwise_count(one[heard] ^ other[heard]).mean() / 32 <= SAME)


def group_of_each(n: int, pairs: list[tuple[int, int]]) -> list[int]:
    """For each of ``n`` recordings, the first recording that ``pairs`` connect it with."""
    first = list(range(n))

    def root(i: int) -> int:
        while first[i] != i:
            i = first[i]
        return i

    for i, j in pairs:
        low, high = sorted((root(i), root(j)))
        first[high] = low
    return [root(i) for i in range(n)]
