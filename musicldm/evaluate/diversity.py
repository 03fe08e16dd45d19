"""Diversity of clips, and how well they cover a reference collection: functions on embeddings ``(N, D)``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from musicldm.evaluate.similarity import unit_rows

ROWS_AT_ONCE = 1024  # of a distance matrix


class Manifold(NamedTuple):
    """How two sets of points overlap. For equal distributions and many samples each value approaches 1."""

    precision: float  # share of generated clips in the neighbourhood of some real clip
    recall: float  # share of real clips in the neighbourhood of some generated clip
    density: float  # real neighbourhoods that hold a generated clip, over the number expected; may exceed 1
    coverage: float  # share of real clips with a generated clip in their neighbourhood


def vendi_score(embeddings: np.ndarray) -> float:
    """Vendi score: the effective number of different clips, from 1 (all the same) to N (all orthogonal).

    The exponential of the entropy of the eigenvalues of the cosine similarity matrix divided by N.
    Friedman and Dieng (2023), https://arxiv.org/abs/2210.02410.

    Args:
        embeddings: of the clips (N, D).

    Examples:
        >>> round(vendi_score(np.eye(4)), 6)
        4.0
        >>> round(vendi_score(np.ones((4, 3))), 6)
        1.0

    Raises:
        ValueError: if a value is not finite, or a row is zero.
    """
    unit = unit_rows(embeddings)
    n, width = unit.shape
    gram = unit.T @ unit if width < n else unit @ unit.T  # the same eigenvalues, less zeros
    values = np.linalg.eigvalsh(gram / n)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def mean_pairwise_similarity(embeddings: np.ndarray) -> float:
    """Mean cosine similarity over all pairs of different clips: 1 if all clips are the same.

    Args:
        embeddings: of the clips (N, D).

    Examples:
        >>> round(mean_pairwise_similarity(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])), 6)
        0.333333

    Raises:
        ValueError: for fewer than two clips.
    """
    unit = unit_rows(embeddings)
    n = len(unit)
    if n < 2:
        raise ValueError(f"similarity among clips needs two or more, got {n}")
    return float((np.square(unit.sum(axis=0)).sum() - n) / (n * (n - 1)))


def manifold(generated: np.ndarray, real: np.ndarray, neighbours: int = 5) -> Manifold:
    """Precision, recall, density and coverage of ``generated (N, D)`` against ``real (M, D)``.

    The neighbourhood of a point is the ball around it whose radius is the Euclidean distance to its ``neighbours``-th
    nearest neighbour in its own set.
    Kynkäänniemi et al. (2019), https://arxiv.org/abs/1904.06991; Naeem et al. (2020), https://arxiv.org/abs/2002.09797.

    Examples:
        >>> real = np.arange(20.0)[:, None]
        >>> found = manifold(real[:10] + 0.01, real, neighbours=2)  # the lower half of the real points
        >>> found.precision, found.recall, found.coverage
        (1.0, 0.6, 0.55)

    Raises:
        ValueError: if the sets do not have one D, or not more than ``neighbours`` points each.
    """
    generated, real = np.asarray(generated, np.float64), np.asarray(real, np.float64)
    if generated.ndim != 2 or real.ndim != 2 or generated.shape[1] != real.shape[1]:
        raise ValueError(f"embeddings must be (N, D) and (M, D) with one D, got {generated.shape} and {real.shape}")
    if min(len(generated), len(real)) <= neighbours:
        raise ValueError(
            f"the {neighbours} nearest neighbours need more than {neighbours} clips on either side, "
            f"got {len(generated)} and {len(real)}; give more clips, or fewer neighbours"
        )
    reach_real, reach_generated = _reach(real, neighbours), _reach(generated, neighbours)
    distances = _distances(real, generated)  # (M, N)
    within_real = distances < reach_real[:, None]
    return Manifold(
        precision=float(within_real.any(axis=0).mean()),
        recall=float((distances < reach_generated[None]).any(axis=1).mean()),
        density=float(within_real.sum(axis=0).mean() / neighbours),
        coverage=float((distances.min(axis=1) < reach_real).mean()),
    )


def _reach(points: np.ndarray, neighbours: int) -> np.ndarray:
    return np.concatenate(
        [
            # the smallest distance is that of the point to itself
            np.partition(_distances(points[i : i + ROWS_AT_ONCE], points), neighbours, axis=1)[:, neighbours]
            for i in range(0, len(points), ROWS_AT_ONCE)
        ]
    )


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(squared.clip(min=0))
