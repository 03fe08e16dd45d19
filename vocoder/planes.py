"""Planes of a spectrogram, for mono and stereo, and their conversion to a waveform.

    mono     waveform (B, L)     <->  log-mel                                       planes (B, 1, T, F)
    stereo   waveform (B, 2, L)  <->  log-mel of mid, log-mel of side, balance      planes (B, 3, T, F)

Mid m = (L + R) / 2 and side s = (L - R) / 2, so L = m + s and R = m - s. Their magnitudes M and S do not distinguish
left from right; the balance b = (|L|^2 - |R|^2) / (|L|^2 + |R|^2) of each band and frame does. One vocoder makes m from
M and s from S, with independent phases, and `pan` combines them so that the sum of both channels is 2 m.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vocoder.match import LOOK_AHEAD, MOST_GAIN, bin_weights, frames_of, framing, limit
from vocoder.mel import MelConfig, log_mel_spectrogram, magnitude, mel_filters

SILENCE = 1e-12  # power of a band, far below the spectrogram's floor


def mid_and_side(waveform: Tensor) -> tuple[Tensor, Tensor]:
    """Mid and side (B, L) each, of stereo ``waveform (B, 2, L)``; both lie between -1 and 1 if its samples do."""
    left, right = waveform.unbind(dim=1)
    return (left + right) / 2, (left - right) / 2


def spectrogram_planes(waveform: Tensor, config: MelConfig) -> Tensor:
    """Planes ``(B, P, T, F)`` of ``waveform (B, L)`` or (B, A, L); T = 1 + L // hop_length. Differentiable.

    For mono `log_mel_spectrogram`; for stereo the log-mels of mid and side, and the balance, from -1 (right) to 1
    (left), which approaches 0 where both channels are below the floor. Samples are clipped to [-1, 1].

    Raises:
        ValueError: if the number of channels is not that of ``config``, or the waveform is too short for a frame.
    """
    channels = 1 if waveform.ndim == 2 else waveform.shape[1]
    if waveform.ndim not in (2, 3) or channels != config.audio_channels:
        shape = "(batch, samples)" if config.audio_channels == 1 else "(batch, 2, samples)"
        raise ValueError(f"the model's waveforms are {shape}, got shape {tuple(waveform.shape)}")
    if config.audio_channels == 1:
        return log_mel_spectrogram(waveform.flatten(0, -2), config)[:, None]
    waveform = waveform.to(torch.promote_types(waveform.dtype, torch.float32)).clamp(-1.0, 1.0)
    mid, side = (log_mel_spectrogram(signal, config) for signal in mid_and_side(waveform))
    power = magnitude(waveform.flatten(0, 1), config).square()
    left, right = (power @ mel_filters(config).to(power).T).unflatten(0, (-1, 2)).unbind(dim=1)  # (B, T, F) each
    silence = config.floor**2 * config.sample_rate / config.n_fft  # of a band whose mean magnitude is the floor
    balance = (left - right) / (left + right).clamp(min=silence)
    return torch.stack([mid, side, balance], dim=1)


def pack_rows(planes: Tensor, bands_per_row: int) -> Tensor:
    """``planes (B, P, T, F)`` with ``k = bands_per_row`` neighbouring bands as channels: (B, P * k, T, F / k)."""
    batch, n_planes, frames, bands = planes.shape
    rows = planes.reshape(batch, n_planes, frames, bands // bands_per_row, bands_per_row)
    return rows.movedim(-1, 2).flatten(1, 2)


def unpack_rows(packed: Tensor, bands_per_row: int) -> Tensor:
    """The inverse of `pack_rows`: planes (B, P, T, F) of ``packed (B, P * k, T, F / k)``."""
    return packed.unflatten(1, (-1, bands_per_row)).movedim(2, -1).flatten(-2)


def vocode_planes(generator: Callable[[Tensor], Tensor], planes: Tensor, config: MelConfig) -> Tensor:
    """Waveform ``(B, L)`` of mono ``planes (B, 1, T, F)``, ``(B, 2, L)`` of stereo ``(B, 3, T, F)``.

    ``generator`` makes waveforms (N, L) from log-mels (N, T, F). Stereo is limited to `vocoder.match.CEILING`. A
    sample depends on `planes_reach` samples of the generator's output on either side.
    """
    if config.audio_channels == 1:
        return generator(planes[:, 0]).reshape(len(planes), -1)
    log_mels = planes[:, :2].transpose(0, 1).flatten(0, 1)  # (2B, T, F): all mids, then all sides
    mid, side = generator(log_mels).reshape(2, len(planes), -1)
    return pan(mid, side, planes, config)


def pan(mid: Tensor, side: Tensor, planes: Tensor, config: MelConfig) -> Tensor:
    """Stereo (B, 2, L) from vocoded ``mid`` and ``side`` (B, L) and ``planes (B, 3, T, F)``; its sum is twice ``mid``.

    In each band |L|^2 - |R|^2 = 4 Re(m s*) and |L|^2 + |R|^2 = 2 (|M|^2 + |S|^2). So the part of s that is correlated
    with m is g m, g = Re(m s*) / |M|^2 = b (|M|^2 + |S|^2) / (2 |M|^2), and the rest has the power |S|^2 - g^2 |M|^2.
    With d = log |S| - log |M| the correlation of m and s is c = b cosh d, from -1 to 1, and g = c exp d. Level
    differences are limited to 20 dB, beyond which the balance has no information. The rest is taken from the vocoded
    side, minus its component along the vocoded mid (vocoders give similar spectra similar phases), at the right level.
    Where a channel would exceed `CEILING`, both are turned down together.
    """
    mid, side = (signal.to(torch.promote_types(signal.dtype, torch.float32)) for signal in (mid, side))
    of_mid, of_side, balance = frames_of(planes, mid, config).unbind(dim=1)  # (B, T, F) each
    difference = (of_side - of_mid).clamp(-MOST_GAIN, MOST_GAIN)
    correlation = (balance * difference.cosh()).clamp(-1.0, 1.0)

    frame, filters = framing(mid, config), mel_filters(config).to(mid)
    m, s = (torch.stft(signal, **frame, return_complex=True).transpose(1, 2) for signal in (mid, side))  # (B, T, K)
    power, power_of_side = (spectrum.abs().square() @ filters.T + SILENCE for spectrum in (m, s))
    found = (m * s.conj()).real @ filters.T / power  # their g
    rest = (1 - found.square() * power / power_of_side).clamp(min=1e-6)  # share of the side
    gain_of_side = ((1 - correlation.square()) / rest).sqrt().clamp(max=math.exp(MOST_GAIN))
    gain_of_mid = correlation * difference.exp() - gain_of_side * found
    weights = _everywhere(bin_weights(filters))  # (F, K)
    joined = (gain_of_mid @ weights) * m + (gain_of_side @ weights) * s
    side = torch.istft(joined.transpose(1, 2), **frame, length=mid.shape[-1])
    return limit(torch.stack([mid + side, mid - side], dim=1), round(LOOK_AHEAD * config.n_fft))


def planes_reach(config: MelConfig) -> int:
    """Samples on either side that a sample of `pan` depends on; 0 for mono."""
    return 0 if config.audio_channels == 1 else config.n_fft + 2 * round(LOOK_AHEAD * config.n_fft)


def _everywhere(weights: Tensor) -> Tensor:
    """``weights (F, K)``, with bins outside all bands, such as 0 Hz, set to the nearest bin inside."""
    inside = (weights.sum(dim=0) > 0.5).nonzero()[:, 0]  # 1, but for rounding
    return weights[:, torch.arange(weights.shape[1], device=weights.device).clamp(inside[0], inside[-1])]
