"""Cosine similarities of embeddings: of prompts and clips, and of clips and a training set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROWS_AT_ONCE = 1024  # of a similarity matrix
THRESHOLDS = (0.90, 0.95)


class Novelty(NamedTuple):
    """How near clips come to a training set, compared with music that cannot have been copied from it (base rate)."""

    share_above: dict[float, float]  # threshold -> share of clips with a nearest neighbour above it
    base_rate_above: dict[float, float] | None  # the same for held-out music
    threshold: float | None  # similarity that 1 % of held-out clips exceed
    share_above_threshold: float | None  # share of clips above ``threshold``


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """``embeddings (N, D)`` with rows of length 1, as float64.

    Raises:
        ValueError: if the shape is not (N, D), a value is not finite, or a row is zero.
    """
    embeddings = np.asarray(embeddings, np.float64)
    if embeddings.ndim != 2 or not embeddings.size:
        raise ValueError(f"embeddings must be (clips, dimensions) and not empty, got {embeddings.shape}")
    if not np.isfinite(embeddings).all():
        raise ValueError("embeddings hold NaN or infinity: remove these clips first")
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"embedding {int(np.argmin(lengths))} is zero and has no direction: remove this clip first")
    return embeddings / lengths


def paired_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarities ``(N,)`` of row i of ``a (N, D)`` and row i of ``b (N, D)``, such as a prompt and its clip.

    Examples:
        >>> paired_similarity([[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [1.0, -1.0]]).round(6).tolist()
        [1.0, 0.0]

    Raises:
        ValueError: if the arrays differ in shape, a value is not finite, or a row is zero.
    """
    a, b = unit_rows(a), unit_rows(b)
    if a.shape != b.shape:
        raise ValueError(f"pairs need arrays of one shape, got {a.shape} and {b.shape}")
    return (a * b).sum(axis=1)


def nearest_similarity(
    queries: np.ndarray, collection: np.ndarray, groups: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Cosine similarity ``(N,)`` of each of ``queries (N, D)`` to its nearest row of ``collection (M, D)``.

    Args:
        queries: embeddings (N, D).
        collection: embeddings (M, D).
        groups: labels (N,) of the queries and (M,) of the collection. Rows with a query's own label are skipped, so
            that a collection can be compared with itself. The result is -1 where all rows are skipped.

    Examples:
        >>> nearest_similarity([[1.0, 0.0]], [[0.0, 1.0], [0.6, 0.8]]).round(6).tolist()
        [0.6]

    Raises:
        ValueError: if the dimensions differ, a value is not finite, or a row is zero.
    """
    queries, collection = unit_rows(queries), unit_rows(collection)
    if queries.shape[1] != collection.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions, the collection {collection.shape[1]}: "
            "embed both with one model"
        )
    nearest = []
    for first in range(0, len(queries), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        similarity = queries[part] @ collection.T
        if groups is not None:
            similarity[np.asarray(groups[0])[part, None] == np.asarray(groups[1])[None]] = -1.0
        nearest.append(similarity.max(axis=1))
    return np.concatenate(nearest).clip(-1, 1)


def novelty(
    nearest: np.ndarray, base_rate: np.ndarray | None = None, thresholds: tuple[float, ...] = THRESHOLDS
) -> Novelty:
    """SIM_AA of the paper: the share of clips with a similarity to the training set above each of ``thresholds``.

    The meaning of a threshold depends on the embedding and on the music; the base rate of held-out music shows it.
    Chen et al. (2023), MusicLDM, section 4.3, https://arxiv.org/abs/2308.01546.

    Args:
        nearest: similarities of generated clips to the training set (N,), from `nearest_similarity`.
        base_rate: the same for held-out clips (M,).
        thresholds: cosines.

    Examples:
        >>> novelty(np.array([0.5, 0.92, 0.99, 0.7])).share_above
        {0.9: 0.5, 0.95: 0.25}
    """

    def shares(values):
        return {threshold: float((values > threshold).mean()) for threshold in thresholds}

    nearest = np.asarray(nearest, np.float64)
    if base_rate is None:
        return Novelty(shares(nearest), None, None, None)
    base_rate = np.asarray(base_rate, np.float64)
    threshold = float(np.quantile(base_rate, 0.99))
    return Novelty(shares(nearest), shares(base_rate), threshold, float((nearest > threshold).mean()))
