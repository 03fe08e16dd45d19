"""Extrapolation of a recording beyond its end by some hundredths of a second: linear prediction.

samples (N,)  ->  Burg's method  ->  coefficients (P,), whose filter is stable  ->  samples (n,) that follow

Burg (1975), Maximum entropy spectral analysis; Kauppinen and Roth (2002), Audio signal extrapolation - theory and
applications, https://www.dafx.de/papers/DAFX02_Kauppinen_Roth_signal_extrapolation.pdf
"""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter, lfiltic

FITTED_S = 0.1  # seconds of sound that the prediction is fitted to
ORDER_S = 0.025  # length of the prediction filter in seconds: a period of the lowest notes
MOST_ORDER = 2048


def burg(samples: np.ndarray, order: int) -> np.ndarray:
    """Coefficients ``(order,)`` that predict a sample from those before it, the latest first.

    Burg's recursion: reflection coefficients are at most 1 in magnitude, so the prediction is stable. Where nothing is
    left to predict (silence, or fewer samples than ``order``) the remaining coefficients are 0.

    Args:
        samples: (N,) floating point.
        order: number of coefficients.
    """
    forward, backward = samples[1:].astype(float), samples[:-1].astype(float)
    polynomial = np.zeros(order + 1)
    polynomial[0] = 1.0
    least = 1e-18 * float(np.square(samples).sum())  # energy below which the residual is rounding noise
    for i in range(min(order, len(samples) - 1)):
        power = forward @ forward + backward @ backward
        if not power > least:
            break
        reflection = -2 * (forward @ backward) / power
        polynomial[: i + 2] = polynomial[: i + 2] + reflection * polynomial[: i + 2][::-1]
        forward, backward = (forward + reflection * backward)[1:], (backward + reflection * forward)[:-1]
    return -polynomial[1:]


def extrapolate(samples: np.ndarray, n: int, rate: int) -> np.ndarray:
    """Predict the ``n`` samples after ``samples (A, N)``, separately for each channel: (A, n).

    The prediction is fitted to the last 0.1 s, or to what there is. A constant offset is continued; a prediction that
    becomes louder than the fitted sound is turned down.
    """
    fitted = samples[:, -max(2, round(FITTED_S * rate)) :].astype(float)
    order = min(round(ORDER_S * rate), MOST_ORDER, fitted.shape[1] // 2)
    return np.stack([_predicted(channel, n, order) for channel in fitted]) if order else np.zeros((len(samples), n))


def _predicted(fitted: np.ndarray, n: int, order: int) -> np.ndarray:
    """``n`` samples after ``fitted (N,)``."""
    offset = fitted.mean()
    centred = fitted - offset
    coefficients = burg(centred, order)
    polynomial = np.concatenate([[1.0], -coefficients])
    state = lfiltic([1.0], polynomial, centred[::-1][:order])
    made = lfilter([1.0], polynomial, np.zeros(n), zi=state)[0]
    peaks = np.maximum.accumulate(np.abs(made))  # until then
    loudest = np.abs(centred).max()
    return made * np.divide(loudest, peaks, out=np.ones(n), where=peaks > loudest) + offset
