"""Time stretching at constant pitch, of ordinary music and of loops.

    waveform (L,) or (A, L) -> Signalsmith Stretch (python-stretch) -> (n_samples,) or (A, n_samples)

Time scales linearly: what was at a share p of the waveform is at the same share of the result. The end of a stretched
loop still leads into its start. Changed phases give new peaks; those beyond full scale are limited.
"""

import math
from typing import Literal

import numpy as np
import torch
from python_stretch import Signalsmith
from scipy.signal import resample

from vocoder.match import limit

MOST_FACTOR = 2.0  # limit of the change of length
MARGIN_S = 0.2  # mirrored or repeated at both ends: more than the 0.12 s that Signalsmith's windows reach
FADE_S = 0.05  # length of the crossfade that closes a loop
LEAST_CENTS = 5.0  # smaller changes of pitch are inaudible; a loop is then resampled, which closes it exactly
SEED = 0  # of Signalsmith's first phases
LOOK_AHEAD_S = 0.016  # of the limiter
Mode = Literal["reflect", "wrap"]


def stretch(waveform: np.ndarray, rate: int, n_samples: int) -> np.ndarray:
    """``waveform`` (L,) or (A, L) at ``rate`` Hz with ``n_samples`` instead of L, at the same pitch; float32.

    The same input gives the same output.

    Raises:
        ValueError: if the waveform is empty or not finite, or would become more than twice as long or short.
    """
    waveform = _checked(waveform, rate, n_samples)
    if waveform.shape[-1] == n_samples:
        return waveform.copy()
    made = _stretched(waveform, rate, n_samples, waveform.shape[-1] / n_samples, "reflect")
    return _limited(made, waveform, rate, 0)


def stretch_loop(waveform: np.ndarray, rate: int, n_samples: int) -> np.ndarray:
    """The loop ``waveform`` (L,) or (A, L) with ``n_samples`` instead of L; its end still leads into its start.

    For up to 5 cents (0.3 %) it is resampled as a periodic signal. Beyond that, it is stretched at the same pitch; the
    phases then differ from turn to turn, and a crossfade of 50 ms joins them where they differ least. That place
    depends on the content only: stretching a rotated loop gives the rotated result, up to rounding.

    Raises:
        ValueError: if the waveform is empty or not finite, or would become more than twice as long or short.
    """
    waveform = _checked(waveform, rate, n_samples)
    length = waveform.shape[-1]
    if length == n_samples:
        return waveform.copy()
    if abs(1200 * math.log2(length / n_samples)) <= LEAST_CENTS:
        made = resample(waveform.astype(np.float64), n_samples, axis=-1).astype(np.float32)
        return _limited(made, waveform, rate, 2 * round(LOOK_AHEAD_S * rate))
    fade = max(1, min(round(FADE_S * rate), n_samples // 4))
    start = _quietest(waveform, rate)
    turned = np.roll(waveform, -start, axis=-1)
    two = _stretched(np.tile(turned, 2), rate, 2 * n_samples + fade, length / n_samples, "wrap")
    closed = _limited(_close(two, n_samples, fade), waveform, rate, 2 * round(LOOK_AHEAD_S * rate))
    return np.roll(closed, round(start * n_samples / length), axis=-1)


def _checked(waveform: np.ndarray, rate: int, n_samples: int) -> np.ndarray:
    """``waveform`` as float32."""
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim not in (1, 2) or not waveform.size:
        raise ValueError(f"a waveform must be (samples,) or (channels, samples) and not empty, got {waveform.shape}")
    if not np.isfinite(waveform).all():
        raise ValueError("a waveform must be finite to be stretched; it holds NaN or infinite samples")
    if not rate > 0:
        raise ValueError(f"rate must be above 0 Hz, got {rate}")
    if not n_samples >= 1 or not 1 / MOST_FACTOR <= waveform.shape[-1] / n_samples <= MOST_FACTOR:
        raise ValueError(
            f"{waveform.shape[-1]} samples cannot become {n_samples}: a stretch is from a half to twice the length"
        )
    return waveform


def _stretched(waveform: np.ndarray, rate: int, n_samples: int, speed: float, mode: Mode) -> np.ndarray:
    """The first ``n_samples`` of ``waveform`` (..., L) played ``speed`` times as fast.

    ``mode`` of `numpy.pad` gives the sound beyond both ends. Signalsmith's windows reach there; with silence it would
    lose sound near the ends.
    """
    channels = np.atleast_2d(waveform)
    margin = math.ceil(MARGIN_S * rate)
    behind = margin + max(0, math.ceil(n_samples * speed) - channels.shape[-1])
    padded = np.pad(channels, ((0, 0), (margin, behind)), mode=mode)
    processor = Signalsmith.Stretch(SEED)
    processor.preset(len(channels), float(rate))
    processor.setTimeFactor(float(speed))
    made = np.asarray(processor.process(np.ascontiguousarray(padded)))
    offset = round(margin / speed)
    return made[:, offset : offset + n_samples].reshape(*waveform.shape[:-1], n_samples)


def _limited(made: np.ndarray, before: np.ndarray, rate: int, reach: int) -> np.ndarray:
    """``made`` (..., L), limited if it exceeds full scale and ``before`` did not; circular over ``reach`` samples."""
    if np.abs(made).max() <= 1 or np.abs(before).max() > 1:
        return made
    channels = np.take(np.atleast_2d(made), np.arange(-reach, made.shape[-1] + reach), axis=-1, mode="wrap")
    limited = limit(torch.from_numpy(channels)[None], round(LOOK_AHEAD_S * rate))[0].numpy()
    return limited[:, reach : reach + made.shape[-1]].reshape(made.shape)


def _quietest(loop: np.ndarray, rate: int) -> int:
    """The sample around which ``loop`` (..., L) is quietest; it rotates with the loop."""
    energy = np.square(np.atleast_2d(loop).astype(np.float64)).sum(axis=0)  # (L,)
    width = min(round(FADE_S * rate), len(energy))
    return int(_circular_sums(energy, width).argmin())


def _circular_sums(values: np.ndarray, width: int) -> np.ndarray:
    """Circular sums (L,) of ``width`` consecutive ``values`` (L,) from each position."""
    total = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[:width]]))])
    return total[width : width + len(values)] - total[: len(values)]


def _close(two: np.ndarray, period: int, fade: int) -> np.ndarray:
    """A loop (..., period) from ``two`` (..., 2 * period + fade): two turns of the same music with different phases.

    They are joined where they differ least, by a crossfade that keeps the power for any correlation.
    """
    channels = np.atleast_2d(two).astype(np.float64)
    first, second = channels[:, : period + fade], channels[:, period : 2 * period + fade]
    different = np.square(first - second).sum(axis=0)
    at = int(np.convolve(different, np.ones(fade), "valid")[:period].argmin())
    came, comes = second[:, at : at + fade], first[:, at : at + fade]
    power = np.square(came).sum() + np.square(comes).sum()
    likeness = 2 * (came * comes).sum() / power if power > 0 else 0.0
    angle = (np.arange(fade) + 0.5) / fade * np.pi / 2
    up, down = np.sin(angle), np.cos(angle)
    gain = 1 / np.sqrt(1 + 2 * likeness * up * down)
    loop = channels[:, at : at + period].copy()  # starts at ``at``
    loop[:, :fade] = gain * (up * comes + down * came)
    return np.roll(loop, at, axis=-1).astype(np.float32).reshape(*two.shape[:-1], period)
