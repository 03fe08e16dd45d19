"""How much of a number is chance: intervals by resampling, and which differences exceed them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from musicldm.evaluate.quality import FLOOR

Statistic = Callable[..., float]


class Estimate(NamedTuple):
    """A value with its interval and standard error."""

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

    Example:
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

    For distances between sets and other statistics of whole collections; the arrays are sets of their own, each is
    halved by itself. The statistic of a half varies about its mean as the whole does about its own (the factor
    1/m - 1/n is 1/n for m = n/2), though the mean itself may be biased; so the interval is that spread, moved to the
    whole's value. Politis, Romano and Wolf (1999), Subsampling.
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

    Example:
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
    """Mean of ``b - a`` for values (N,) of the same prompts with its interval, and how likely chance alone does that.

    The probability is two-sided, by random signs (a permutation test).
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
    """``b - a`` of two independent estimates, taken as normal, and the two-sided probability of it by chance."""
    from scipy.stats import norm

    difference, error = b.value - a.value, float(np.hypot(a.error, b.error))
    if error == 0:
        return Estimate(difference, difference, difference, 0.0), 1.0 if difference == 0 else 0.0
    half = 1.96 * error
    return Estimate(difference, difference - half, difference + half, error), float(
        2 * norm.sf(abs(difference) / error)
    )


def holm(probabilities: dict[str, float]) -> dict[str, float]:
    """The probabilities corrected for looking at several differences at once. Holm (1979)."""
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
