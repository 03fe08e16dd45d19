"""Cosine similarities of embeddings: of words and music, and of music and what a model was trained on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROWS_AT_ONCE = 1024  # of a similarity matrix
THRESHOLDS = (0.90, 0.95)


class Novelty(NamedTuple):
    """How near a set of clips comes to a collection, beside how near music comes that cannot have been copied."""

    share_above: dict[float, float]  # threshold -> share of clips whose nearest neighbour is more similar than it
    base_rate_above: dict[float, float] | None  # the same of held-out music
    threshold: float | None  # similarity that one clip of held-out music in a hundred exceeds
    share_above_threshold: float | None


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """``embeddings (N, D)`` with rows of length 1, as float64.

    Raises:
        ValueError: if they are no (N, D), hold NaN, or a row is zero.
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
    """Cosine similarity ``(N,)`` of row i of ``a (N, D)`` and row i of ``b (N, D)``: a text and its music, say."""
    a, b = unit_rows(a), unit_rows(b)
    if a.shape != b.shape:
        raise ValueError(f"pairs need arrays of one shape, got {a.shape} and {b.shape}")
    return (a * b).sum(axis=1)


def nearest_similarity(
    queries: np.ndarray, collection: np.ndarray, groups: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Cosine similarity ``(N,)`` of each of ``queries (N, D)`` to its nearest row of ``collection (M, D)``.

    ``groups`` are labels (N,) and (M,): rows of the collection with a query's own label are passed over, which turns a
    collection compared with itself into a base rate. A query whose label everything has gets -1.

    Raises:
        ValueError: if the two do not have one D.
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
    """SIM_AA of the paper: the share of clips nearer to the training set than each of ``thresholds``.

    ``nearest (N,)`` and ``base_rate (M,)`` come from `nearest_similarity`, of generated and of held-out clips. What a
    threshold means depends on the embedding and on the music: held-out music says it.
    Chen et al. (2023), MusicLDM, section 4.3, https://arxiv.org/abs/2308.01546.
    """

    def shares(values):
        return {threshold: float((values > threshold).mean()) for threshold in thresholds}

    nearest = np.asarray(nearest, np.float64)
    if base_rate is None:
        return Novelty(shares(nearest), None, None, None)
    base_rate = np.asarray(base_rate, np.float64)
    threshold = float(np.quantile(base_rate, 0.99))
    return Novelty(shares(nearest), shares(base_rate), threshold, float((nearest > threshold).mean()))
