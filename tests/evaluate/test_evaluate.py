"""Distances between collections: known answers and invariants."""

import numpy as np
import pytest
from scipy import linalg

from musicldm.evaluate import frechet_distance, kernel_distance

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(400, 6)), RNG.normal(size=(300, 6)) @ RNG.normal(size=(6, 6)) + 1.0


def test_frechet_distance_agrees_with_the_matrix_square_root():
    cov_a, cov_b = np.cov(A, rowvar=False), np.cov(B, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = ((A.mean(0) - B.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(A, B) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_shifted_sets_is_the_squared_shift():
    assert frechet_distance(A, A + 2.0) == pytest.approx(4.0 * A.shape[1])
    assert frechet_distance(A, A) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_on_too_few_samples_warns():
    with pytest.warns(UserWarning, match="kernel distance"):
        frechet_distance(A[:5], B)


def test_kernel_distance_is_the_definition():
    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    a, b = A[:7], B[:5]
    within_a = np.mean([kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    within_b = np.mean([kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between)


def test_kernel_distance_of_one_distribution_is_near_zero_and_grows_with_the_difference():
    halves = kernel_distance(A[:200], A[200:])
    assert abs(halves) < 0.2
    assert halves < kernel_distance(A[:200], A[200:] + 0.5) < kernel_distance(A[:200], A[200:] + 1.0)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_embeddings_that_do_not_fit_are_refused(distance):
    with pytest.raises(ValueError, match="one D"):
        distance(A, B[:, :3])
    with pytest.raises(ValueError, match="NaN"):
        distance(A, np.where(B > 0, B, np.nan))
