"""Scores from the probabilities ``(N, K)`` that a classifier gives N clips.

Any classifier will do; only scores by the same classifier can be compared.
"""

from __future__ import annotations

import numpy as np

FLOOR = 1e-12  # lower probabilities count as this, so that logarithms stay finite


def inception_score(probabilities: np.ndarray, splits: int = 1) -> float:
    """Inception score, from 1 to K: high if each clip has one clear class, and all classes are present.

    The exponential of the mean KL divergence between each row and the mean row.
    Salimans et al. (2016), https://arxiv.org/abs/1606.03498.

    Args:
        probabilities: of each class for each clip (N, K).
        splits: number of consecutive parts whose scores are averaged.

    Examples:
        >>> inception_score(np.eye(4))
        4.0
        >>> inception_score(np.full((4, 4), 0.25))
        1.0

    Raises:
        ValueError: if the rows are not probabilities, or there are fewer than ``splits``.
    """
    probabilities = _check(probabilities)
    if not 1 <= splits <= len(probabilities):
        raise ValueError(f"{len(probabilities)} clips cannot be split into {splits} parts")
    scores = []
    for part in np.array_split(probabilities, splits):
        scores.append(np.exp(_divergence(part, part.mean(axis=0, keepdims=True)).mean()))
    return float(np.mean(scores))


def paired_kl_divergence(reference: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence KL(reference || generated) of each pair of rows, in nats: ``(N,)``.

    Papers report the mean. Kreuk et al. (2022), AudioGen, https://arxiv.org/abs/2209.15352.

    Args:
        reference: class probabilities of the recordings that the prompts describe (N, K).
        generated: class probabilities of the clips generated from the same prompts (N, K).

    Examples:
        >>> paired_kl_divergence([[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]).round(3).tolist()
        [0.0, 0.693]

    Raises:
        ValueError: if the rows are not probabilities, or the arrays differ in shape.
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
