"""Scores from a classifier's probabilities ``(N, K)``: is each clip clearly something, are all of them not the same?

Any classifier will do, as long as both sides of a comparison went through the same one.
"""

from __future__ import annotations

import numpy as np

FLOOR = 1e-12  # below this a probability counts as this, so that logarithms stay finite


def inception_score(probabilities: np.ndarray, splits: int = 1) -> float:
    """exp of the mean divergence of each row of ``probabilities (N, K)`` from their mean; from 1 to K.

    With several ``splits`` the mean over consecutive parts, as in the original.
    Salimans et al. (2016), https://arxiv.org/abs/1606.03498.

    Raises:
        ValueError: if the rows are no probabilities, or there are fewer than ``splits``.
    """
    probabilities = _check(probabilities)
    if not 1 <= splits <= len(probabilities):
        raise ValueError(f"{len(probabilities)} clips cannot be split into {splits} parts")
    scores = []
    for part in np.array_split(probabilities, splits):
        scores.append(np.exp(_divergence(part, part.mean(axis=0, keepdims=True)).mean()))
    return float(np.mean(scores))


def paired_kl_divergence(reference: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence KL(reference || generated) of each pair of rows ``(N, K)``, in nats: ``(N,)``.

    Row i of both belongs to one prompt: the recording that the prompt describes and what was generated. The usual
    figure is the mean. Kreuk et al. (2022), AudioGen, https://arxiv.org/abs/2209.15352.

    Raises:
        ValueError: if the rows are no probabilities, or do not come in pairs.
    """
    reference, generated = _check(reference), _check(generated)
    if reference.shape != generated.shape:
        raise ValueError(f"pairs need arrays of one shape, got {reference.shape} and {generated.shape}")
    return _divergence(reference, generated)


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * (np.log(p.clip(min=FLOOR)) - np.log(q.clip(min=FLOOR)))).sum(axis=1)


def _check(probabilities: np.ndarray) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or not probabilities.size:
        raise ValueError(f"probabilities must be (clips, classes) and not empty, got {probabilities.shape}")
    sums = probabilities.sum(axis=1)
    if not (probabilities >= 0).all() or not np.allclose(sums, 1.0, atol=1e-3):
        raise ValueError("each row of probabilities must be from 0 to 1 and add up to 1; apply a softmax first")
    return probabilities / sums[:, None]
