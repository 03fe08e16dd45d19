"""Loudness as of finished recordings.

audio (L, channels) of any level -> gain, limiter -> audio as loud as asked, below full scale
"""

import math

import numpy as np
from scipy.ndimage import minimum_filter1d, uniform_filter1d

from augment.mixup import block_loudness, gated_loudness, loudness_gain

CEILING = 10 ** (-1 / 20)  # of the samples: converters' filters need some room
MOST_LIMITING_DB = 9.0  # by which the highest peak is turned down; what would need more stays quieter than asked
LOOK_AHEAD_S = 0.02


def loudness(audio: np.ndarray, rate: int) -> float:
    """Integrated loudness in LUFS of ``audio`` (L, channels); minus infinity of silence, or of less than 400 ms."""
    return gated_loudness(block_loudness(audio, rate))


def master_gain(audio: np.ndarray, rate: int, lufs: float) -> float:
    """The factor that brings ``audio`` (L, channels), not silent, to ``lufs`` before its limiter.

    It leaves that at most `MOST_LIMITING_DB`. What is too short to have a loudness gets a peak of `CEILING`.
    """
    highest = np.abs(audio).max()
    most = CEILING * 10 ** (MOST_LIMITING_DB / 20) / highest
    found = loudness(audio, rate)
    return min(most, loudness_gain(found, lufs)) if math.isfinite(found) else CEILING / highest


def master(audio: np.ndarray, rate: int, lufs: float) -> np.ndarray:
    """``audio`` (L, channels), not silent, brought to ``lufs``; peaks beyond `CEILING` are turned down by a limiter.

    What would need more than `MOST_LIMITING_DB` of it, or is too short to have a loudness, ends below ``lufs``.
    """
    return limit(audio * master_gain(audio, rate, lufs), round(LOOK_AHEAD_S * rate))


def limit(audio: np.ndarray, look_ahead: int) -> np.ndarray:
    """``audio`` (L, channels) with no sample beyond `CEILING`.

    The gain, one for all channels, is the least that the samples within ``look_ahead`` need, averaged over as many.
    """
    needed = np.minimum(1.0, CEILING / np.abs(audio).max(axis=1).clip(min=CEILING))
    size = 2 * look_ahead + 1
    gain = uniform_filter1d(minimum_filter1d(needed, size, mode="nearest"), size, mode="nearest")
    return (audio * gain[:, None]).clip(-CEILING, CEILING)  # for rounding
