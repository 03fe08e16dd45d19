"""Mixing two recordings: loudness, speed, and the convex combination of waveforms or latents.

    a (L,), b (L,), lambda  ->  lambda a + (1 - lambda) b

Zhang et al. (2018), mixup, https://arxiv.org/abs/1710.09412. Lambda is the share that is heard only if both are equally
loud; loudness is measured by ITU-R BS.1770-4.
"""

from __future__ import annotations

import math

import numpy as np

BLOCK_S, HOP_S = 0.4, 0.1  # gating blocks of BS.1770
SILENCE_LUFS = -70.0  # the absolute gate: quieter blocks are ignored
BETA = 5.0  # lambda is drawn from Beta(5, 5)
PEAK = 0.5  # of a mixed waveform
MAX_STRETCH = 0.04


def draw_lambda(rng: np.random.Generator) -> float:
    """The share of the anchor: Beta(5, 5), mean 0.5, standard deviation 0.15."""
    return float(rng.beta(BETA, BETA))


def mix_waveforms(a, b, lam):
    """``lam * a + (1 - lam) * b`` for waveforms (L,) or (B, L), arrays or tensors; ``lam`` a number or (B,).

    Examples:
        >>> mix_waveforms(np.array([0.4, 0.0]), np.array([0.0, 0.8]), 0.25).round(6).tolist()
        [0.1, 0.6]

    Raises:
        ValueError: if the shapes differ, or ``lam`` is not from 0 to 1.
    """
    return _mix(a, b, lam)


def mix_latents(a, b, lam):
    """``lam * a + (1 - lam) * b`` for latents (C, T, F) or (B, C, T, F), arrays or tensors; ``lam`` a number or (B,).

    Raises:
        ValueError: if the shapes differ, or ``lam`` is not from 0 to 1.
    """
    return _mix(a, b, lam)


def _mix(a, b, lam):
    if a.shape != b.shape:
        raise ValueError(f"only equal shapes can be mixed, got {tuple(a.shape)} and {tuple(b.shape)}; cut the longer")
    share = np.asarray(lam, dtype=float)
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"lambda is a share from 0 to 1, got {lam}")
    if share.ndim == 0:
        return float(share) * a + (1 - float(share)) * b
    if share.shape != tuple(a.shape[:1]):
        raise ValueError(f"lambda must be a number or one for each of {len(a)} items, got shape {share.shape}")
    share = share.reshape(-1, *[1] * (a.ndim - 1))
    share = share.astype(a.dtype) if isinstance(a, np.ndarray) else a.new_tensor(share)
    return share * a + (1 - share) * b


def normalise_peak(waveform: np.ndarray, peak: float = PEAK) -> np.ndarray:
    """``waveform`` (..., L) minus the means of its channels, scaled to the peak ``peak``; silence is unchanged."""
    centred = waveform - waveform.mean(axis=-1, keepdims=True)
    largest = max(centred.max(), -centred.min())
    return centred * (peak / largest) if largest > 1e-8 else centred


def block_loudness(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Loudness (K,) in LUFS of the gating blocks of ``waveform`` (L,): 0.4 s long, one every 0.1 s, at least -120.

    Empty for less than 0.4 s. `gated_loudness` of all of them is the integrated loudness.
    """
    from pyloudnorm import Meter

    if len(waveform) < BLOCK_S * sample_rate:
        return np.empty(0)
    meter = Meter(sample_rate)
    with np.errstate(divide="ignore"):
        meter.integrated_loudness(waveform.astype(np.float64))
    return np.maximum(np.asarray(meter.blockwise_loudness, dtype=float), -120.0)


def gated_loudness(blocks: np.ndarray) -> float:
    """Integrated loudness in LUFS of gating blocks (K,): BS.1770-4, both gates; minus infinity for silence."""
    heard = blocks[blocks >= SILENCE_LUFS]
    if not len(heard):
        return -math.inf
    gate = 10 * math.log10(np.mean(10 ** (heard / 10))) - 10
    return 10 * math.log10(np.mean(10 ** (heard[heard > gate] / 10)))


def excerpt_loudness(blocks: np.ndarray, start_s: float, end_s: float) -> float:
    """Integrated loudness in LUFS from ``start_s`` to ``end_s``, of the gating blocks (K,) of the whole recording."""
    first = math.ceil(start_s / HOP_S - 1e-9)
    last = math.floor((end_s - BLOCK_S) / HOP_S + 1e-9) + 1
    return gated_loudness(blocks[max(first, 0) : max(last, 0)])


def loudness_gain(from_lufs: float, to_lufs: float) -> float:
    """Factor that brings a waveform of one loudness to another."""
    return 10 ** ((to_lufs - from_lufs) / 20)


def stretch(waveform: np.ndarray, sample_rate: int, speed: float) -> np.ndarray:
    """``waveform`` (L,) or (A, L) played ``speed`` times as fast at the same pitch: about (L / speed) samples, float32.

    Signalsmith Stretch; the same input gives the same output.

    Raises:
        ValueError: if the speed differs from 1 by more than 4 %.
        ImportError: if python-stretch is not installed.
    """
    if not abs(speed - 1) <= MAX_STRETCH + 1e-9:
        raise ValueError(f"speed must be within {MAX_STRETCH:.0%} of 1, since more is audible, got {speed}")
    if speed == 1:
        return waveform
    try:
        from python_stretch import Signalsmith
    except ImportError as error:
        raise ImportError("changing the speed needs python-stretch: run `pip install 'musicldm[mixup]'`") from error
    processor = Signalsmith.Stretch(0)  # its phases start at random; this is the seed
    channels = np.ascontiguousarray(np.atleast_2d(waveform), dtype=np.float32)
    processor.preset(len(channels), float(sample_rate))
    processor.setTimeFactor(float(speed))
    return np.asarray(processor.process(channels)).reshape(*waveform.shape[:-1], -1)
