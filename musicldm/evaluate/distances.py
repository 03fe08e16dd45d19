"""Distances between two sets of embeddings, ``(N, D)`` and ``(M, D)``: how similar two collections of music are.

embeddings of generated clips, of real clips -> one number, about 0 for equal distributions
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np


class Extrapolation(NamedTuple):
    """A distance extrapolated to infinitely many samples."""

    distance: float
    slope: float  # distance at n samples is about distance + slope / n
    fit: float  # share of the variance that this line explains (R squared), at most 1


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kernel distance (KID): the unbiased squared maximum mean discrepancy with the cubic kernel (x.y / D + 1)^3.

    Unlike the Fréchet distance it is not biased for small sets. For equal distributions it can be slightly below 0.
    Binkowski et al. (2018), https://arxiv.org/abs/1801.01401, computed over all pairs instead of subsets.

    Args:
        a: embeddings (N, D).
        b: embeddings (M, D).

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> a, b, other = rng.normal(size=(200, 4)), rng.normal(size=(200, 4)), rng.normal(2.0, size=(200, 4))
        >>> abs(kernel_distance(a, b)) < 0.1 < kernel_distance(a, other)
        True

    Raises:
        ValueError: if a set has fewer than two embeddings, the dimensions differ, or a value is not finite.
    """
    a, b = _check(a, b)
    n, m, width = len(a), len(b), a.shape[1]
    if min(n, m) < 2:
        raise ValueError(f"the kernel distance needs two embeddings or more on either side, got {n} and {m}")
    aa, bb, ab = ((x @ y.T / width + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within_a = (aa.sum() - np.trace(aa)) / (n * (n - 1))
    within_b = (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return float(within_a + within_b - 2 * ab.mean())


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the two normal distributions with the means and covariances of the sets.

    ``|mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))``; in image generation it is called FID, in
    audio FAD. Biased upwards for sets of fewer embeddings than dimensions, with a warning.
    Heusel et al. (2017), https://arxiv.org/abs/1706.08500.

    Args:
        a: embeddings (N, D).
        b: embeddings (M, D).

    Examples:
        >>> a = np.array([[0.0], [2.0], [0.0], [2.0]])
        >>> round(frechet_distance(a, a + 3.0), 6)  # equal covariances: the squared distance of the means
        9.0

    Raises:
        ValueError: if a set has fewer than two embeddings, the dimensions differ, or a value is not finite.
    """
    a, b = _check(a, b)
    width = a.shape[1]
    if min(len(a), len(b)) <= width:
        warnings.warn(
            f"{min(len(a), len(b))} embeddings are too few for a covariance of {width} dimensions: the distance is "
            "biased upwards; give more clips, or use the kernel distance",
            stacklevel=2,
        )
    return _frechet(a, b)


def _frechet(a: np.ndarray, b: np.ndarray) -> float:
    width = a.shape[1]
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs two embeddings or more on either side, got {len(a)} and {len(b)}")
    difference = a.mean(axis=0) - b.mean(axis=0)
    cov_a, cov_b = np.cov(a, rowvar=False).reshape(width, width), np.cov(b, rowvar=False).reshape(width, width)
    # Eigenvalues instead of scipy.linalg.sqrtm: cov_a cov_b has the eigenvalues of the symmetric root_a cov_b root_a,
    # whose roots are real, also where covariances are singular.
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(min=0)).sum()
    return float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def frechet_distance_infinity(
    samples: np.ndarray, reference: np.ndarray, steps: int = 15, smallest: int | None = None, seed: int = 0
) -> Extrapolation:
    """Fréchet distance of ``samples (N, D)`` to ``reference (M, D)``, extrapolated to infinitely many samples.

    The bias of the distance is about proportional to 1/n for n samples. A line is fitted to the distances of random
    subsets over 1/n, and read at 1/n = 0. The reference is used whole, so its own bias remains: give a large one.
    Chong and Forsyth (2020), https://arxiv.org/abs/1911.07023; for music Gui et al. (2024),
    https://arxiv.org/abs/2311.01616.

    Args:
        samples: embeddings (N, D).
        reference: embeddings (M, D).
        steps: number of subset sizes.
        smallest: smallest subset; by default D + 1, at least a fifth of N.
        seed: of the subsets.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> samples, reference = rng.normal(size=(300, 4)), rng.normal(size=(3000, 4))
        >>> found = frechet_distance_infinity(samples, reference)
        >>> found.distance < frechet_distance(samples, reference), found.slope > 0
        (True, True)

    Raises:
        ValueError: if there are too few samples for a line, the dimensions differ, or a value is not finite.
    """
    samples, reference = _check(samples, reference)
    n, width = samples.shape
    smallest = max(width + 1, n // 5, 2) if smallest is None else smallest
    if not 2 <= smallest < n or steps < 3:
        raise ValueError(
            f"no line can be fitted to subsets of {smallest} to {n} samples of {width} dimensions in {steps} steps; "
            f"give more than {smallest} clips, an embedding of fewer dimensions, or use the kernel distance"
        )
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.round(1 / np.linspace(1 / n, 1 / smallest, steps)).astype(int))  # evenly spaced in 1/n
    if len(sizes) < 3:
        raise ValueError(
            f"subsets of {smallest} to {n} samples have {len(sizes)} sizes, too few for a line; give more clips"
        )
    distances = np.array([_frechet(samples[rng.permutation(n)[:size]], reference) for size in sizes])
    slope, distance = np.polyfit(1 / sizes, distances, 1)
    spread = ((distances - distances.mean()) ** 2).sum()
    residual = ((distances - distance - slope / sizes) ** 2).sum()
    return Extrapolation(float(distance), float(slope), float(1 - residual / spread) if spread > 0 else 1.0)


def _check(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"embeddings must be (N, D) and (M, D) with one D, got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("embeddings hold NaN or infinity: remove these clips first")
    return a, b
