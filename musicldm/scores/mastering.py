"""Loudness as of finished recordings.

    audio (L, channels) of any level -> gain, limiter -> audio as loud as asked, below full scale

Loudness is that of ITU-R BS.1770-4, in LUFS: the power of both channels, weighted by frequency as ears do, of the
400 ms blocks that are neither silent nor far below the others.
"""

import math

import numpy as np
from scipy.ndimage import minimum_filter1d, uniform_filter1d
from scipy.signal import lfilter

BLOCK_S, STEP_S = 0.4, 0.1
SILENT_LUFS, BELOW_OTHERS = -70.0, -10.0  # gates: absolute, and relative to what passes the first
CEILING = 10 ** (-1 / 20)  # of the samples: converters' filters need some room
MOST_LIMITING_DB = 9.0  # by which the highest peak is turned down; what would need more stays quieter than asked
LOOK_AHEAD_S = 0.02
SHELF_HZ, SHELF_QUALITY, SHELF_DB = 1681.974450955533, 0.7071752369554196, 3.999843853973347
PASS_HZ, PASS_QUALITY = 38.13547087602444, 0.5003270373238773


def loudness(audio: np.ndarray, rate: int) -> float:
    """Integrated loudness in LUFS of ``audio`` (L, channels); minus infinity of silence, or of less than 400 ms."""
    weighted = np.square(_weighted(audio, rate)).sum(axis=1)
    total = np.concatenate([[0.0], np.cumsum(weighted)])
    block, step = round(BLOCK_S * rate), round(STEP_S * rate)
    starts = np.arange(0, len(audio) - block + 1, step)
    power = (total[starts + block] - total[starts]) / block
    heard = power[power > _power(SILENT_LUFS)]
    if not heard.size:
        return -math.inf
    return _lufs(heard[heard > _power(_lufs(heard.mean()) + BELOW_OTHERS)].mean())


def master(audio: np.ndarray, rate: int, lufs: float) -> np.ndarray:
    """``audio`` (L, channels), not silent, brought to ``lufs``; peaks beyond `CEILING` are turned down by a limiter.

    What would need more than `MOST_LIMITING_DB` of it, or is too short to have a loudness, ends below ``lufs``.
    """
    highest = np.abs(audio).max()
    most = CEILING * 10 ** (MOST_LIMITING_DB / 20) / highest
    found = loudness(audio, rate)
    gain = min(most, 10 ** ((lufs - found) / 20)) if math.isfinite(found) else CEILING / highest
    return limit(audio * gain, round(LOOK_AHEAD_S * rate))


def limit(audio: np.ndarray, look_ahead: int) -> np.ndarray:
    """``audio`` (L, channels) with no sample beyond `CEILING`.

    The gain, one for all channels, is the least that the samples within ``look_ahead`` need, averaged over as many.
    """
    needed = np.minimum(1.0, CEILING / np.abs(audio).max(axis=1).clip(min=CEILING))
    size = 2 * look_ahead + 1
    gain = uniform_filter1d(minimum_filter1d(needed, size, mode="nearest"), size, mode="nearest")
    return (audio * gain[:, None]).clip(-CEILING, CEILING)  # for rounding


def _weighted(audio: np.ndarray, rate: int) -> np.ndarray:
    """``audio`` (L, channels) through the two filters of BS.1770, a high shelf and a high-pass.

    The recommendation gives coefficients for 48 kHz; here the analogue filters behind them are designed for ``rate``.
    """
    k, q = math.tan(math.pi * SHELF_HZ / rate), SHELF_QUALITY
    high, band = 10 ** (SHELF_DB / 20), 10 ** (SHELF_DB / 40)
    b = [high + band * k / q + k * k, 2 * (k * k - high), high - band * k / q + k * k]
    audio = lfilter(b, [1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k], audio, axis=0)
    k, q = math.tan(math.pi * PASS_HZ / rate), PASS_QUALITY
    a = np.array([1 + k / q + k * k, 2 * (k * k - 1), 1 - k / q + k * k])
    return lfilter([1, -2, 1], a / a[0], audio, axis=0)


def _power(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


def _lufs(power: float) -> float:
    return -0.691 + 10 * math.log10(power)
