"""Distances between two sets of embeddings, ``(N, D)`` and ``(M, D)``: how alike two collections of music are.

embeddings of generated clips, of real clips -> one number, 0 for equal distributions
"""

from __future__ import annotations

import warnings

import numpy as np


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kernel distance (KID): the unbiased squared maximum mean discrepancy under the cubic kernel (x.y / D + 1)^3.

    Unlike the Frechet distance it has no bias from small sets; it can fall slightly below 0 for equal distributions.
    Binkowski et al. (2018), https://arxiv.org/abs/1801.01401, over all pairs instead of subsets.
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
    """Frechet distance of the two normal distributions with the sets' means and covariances.

    |mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)). Heusel et al. (2017), https://arxiv.org/abs/1706.08500.
    """
    a, b = _check(a, b)
    width = a.shape[1]
    if min(len(a), len(b)) <= width:
        warnings.warn(
            f"{min(len(a), len(b))} embeddings of {width} dimensions do not determine a covariance: the distance is "
            "biased upwards; give more clips, or use the kernel distance",
            stacklevel=2,
        )
    difference = a.mean(axis=0) - b.mean(axis=0)
    cov_a, cov_b = np.cov(a, rowvar=False).reshape(width, width), np.cov(b, rowvar=False).reshape(width, width)
    # The eigenvalues of cov_a cov_b are those of the symmetric root_a cov_b root_a, whose root's trace is wanted.
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(min=0)).sum()
    return float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def _check(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"embeddings must be (N, D) and (M, D) with one D, got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("embeddings hold NaN or infinity: remove these clips first")
    return a, b
