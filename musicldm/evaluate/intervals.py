"""Confidence intervals by resampling, and tests of differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from musicldm.evaluate.quality import FLOOR

Statistic = Callable[..., float]


class Estimate(NamedTuple):
    """A value with its confidence interval and standard error."""

    value: float
    low: float
    high: float
    error: float


def bootstrap(
    statistic: Statistic, *arrays: np.ndarray, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Estimate:
    """``statistic(*arrays)`` with its percentile bootstrap interval; ``arrays`` are (N,), entry i of all is one clip.

    For means, shares, medians. Not for distances between sets: rows drawn twice look like copies there, which biases
    them; use `half_samples`. Efron (1979), https://doi.org/10.1214/aos/1176344552.

    Examples:
        >>> similarity = np.array([0.31, 0.35, 0.28, 0.40, 0.33])
        >>> estimate = bootstrap(np.mean, similarity)
        >>> round(estimate.value, 3), round(estimate.low, 2), round(estimate.high, 2)
        (0.334, 0.3, 0.37)

    Raises:
        ValueError: for fewer than two clips, arrays of different lengths, or a ``level`` that is not between 0 and 1.
    """
    from scipy.stats import bootstrap as resample

    _rows(arrays, level, draws)
    found = resample(
        arrays,
        statistic,
        n_resamples=draws,
        confidence_level=level,
        method="percentile",
        paired=len(arrays) > 1,
        vectorized=False,
        rng=np.random.default_rng(seed),
    )
    low, high = map(float, found.confidence_interval)
    return Estimate(float(statistic(*arrays)), low, high, float(found.standard_error))


def half_samples(
    statistic: Statistic, *arrays: np.ndarray, draws: int = 100, level: float = 0.95, seed: int = 0
) -> Estimate:
    """``statistic(*arrays)`` with an interval from random halves of the rows, drawn without replacement.

    For distances between sets and other statistics of whole collections. Each array is a set of its own and is halved
    independently. For halves drawn without replacement the variance of a statistic is about that of the whole set
    (1/m - 1/n = 1/n for m = n/2), but its mean may be biased. So the interval is the spread of the halves around their
    mean, shifted to the value of the whole. Politis, Romano and Wolf (1999), Subsampling.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> estimate = half_samples(lambda x: float(x.mean()), rng.normal(size=(100, 1)))
        >>> estimate.low < 0 < estimate.high
        True

    Raises:
        ValueError: for an array of fewer than four rows, or a ``level`` that is not between 0 and 1.
    """
    for array in arrays:
        _rows((array,), level, draws)
        if len(array) < 4:
            raise ValueError(f"halves need four rows or more, got {len(array)}")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        values.append(statistic(*(array[rng.permutation(len(array))[: len(array) // 2]] for array in arrays)))
    whole, spread = statistic(*arrays), np.asarray(values) - np.mean(values)
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(whole), float(whole + low), float(whole + high), float(np.std(values, ddof=1)))


def share(hits: np.ndarray, level: float = 0.95) -> Estimate:
    """The share of true values in ``hits (N,)``, true or false, with Wilson's interval.

    The interval is informative even where none or all are true; its error is half its width over the normal quantile.
    Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953.

    Examples:
        >>> estimate = share(np.array([True, True, True, False]))
        >>> estimate.value, round(estimate.low, 2), round(estimate.high, 2)
        (0.75, 0.3, 0.95)

    Raises:
        ValueError: for fewer than two clips, or values other than true and false.
    """
    from scipy.stats import binomtest, norm

    hits = np.asarray(hits, np.float64)
    n = _rows((hits,), level, 2)
    if not np.isin(hits, (0.0, 1.0)).all():
        raise ValueError("a share is of values that are true or false (1 or 0); use bootstrap for other values")
    low, high = binomtest(int(hits.sum()), n).proportion_ci(level, method="wilson")
    return Estimate(float(hits.mean()), float(low), float(high), float((high - low) / 2 / norm.ppf((1 + level) / 2)))


def paired_difference(a: np.ndarray, b: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[Estimate, float]:
    """Mean of ``b - a`` with its interval, and the p-value of a two-sided permutation test (random signs).

    Args:
        a: values (N,) of one model.
        b: values (N,) of another model for the same prompts.
        draws: of random signs.
        seed: of the draws.

    Examples:
        >>> a = np.array([0.30, 0.32, 0.29, 0.35, 0.31, 0.33, 0.28, 0.34, 0.30, 0.32])
        >>> difference, probability = paired_difference(a, a + 0.02)
        >>> round(difference.value, 3), probability < 0.01
        (0.02, True)

    Raises:
        ValueError: if the arrays differ in length.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"pairs need two arrays of one length, got {a.shape} and {b.shape}")
    difference = b - a
    # Not scipy.stats.permutation_test: it draws other signs from the same seed, and published results would change.
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size=(draws, len(a)))
    extreme = np.abs(signs @ difference / len(a)) >= abs(difference.mean()) - FLOOR
    return bootstrap(np.mean, difference, draws=min(draws, 1000), seed=seed), float((extreme.sum() + 1) / (draws + 1))


def unpaired_difference(a: Estimate, b: Estimate) -> tuple[Estimate, float]:
    """``b - a`` of two independent estimates with normal errors, and its two-sided p-value.

    Examples:
        >>> difference, probability = unpaired_difference(Estimate(0.5, 0.4, 0.6, 0.05), Estimate(0.7, 0.6, 0.8, 0.05))
        >>> round(difference.value, 3), round(probability, 4)
        (0.2, 0.0047)
    """
    from scipy.stats import norm

    difference, error = b.value - a.value, float(np.hypot(a.error, b.error))
    if error == 0:
        return Estimate(difference, difference, difference, 0.0), 1.0 if difference == 0 else 0.0
    half = 1.96 * error
    return Estimate(difference, difference - half, difference + half, error), float(
        2 * norm.sf(abs(difference) / error)
    )


def holm(probabilities: dict[str, float]) -> dict[str, float]:
    """P-values corrected for multiple comparisons by Holm's method (1979).

    Examples:
        >>> {name: round(p, 3) for name, p in holm({"a": 0.01, "b": 0.03}).items()}
        {'a': 0.02, 'b': 0.03}
    """
    corrected, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(probabilities.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(probabilities) - rank)))
        corrected[name] = highest
    return corrected


def _rows(arrays: tuple[np.ndarray, ...], level: float, draws: int) -> int:
    if not 0 < level < 1 or draws < 2:
        raise ValueError(f"level must lie between 0 and 1 and draws be 2 or more, got {level} and {draws}")
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or min(lengths) < 2:
        raise ValueError(f"an interval needs two clips or more, the same for all arrays, got {sorted(lengths)}")
    return lengths.pop()
