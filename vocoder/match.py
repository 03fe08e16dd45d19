"""Mel-consistency post-filter: corrects a vocoder's waveform by the spectrogram that it was made from.

    log-mel (B, T, F) -> generator -> waveform (B, L) -> short-time spectrum -> gains of its bands -> waveform (B, L)

A small generator leaves noise between harmonics and after notes. Each pass multiplies the short-time spectrum, band by
band, by the ratio of wanted to actual level, as a Wiener filter does, and keeps the phases. Overlapping frames are
combined by least squares (Griffin and Lim, 1984, https://doi.org/10.1109/TASSP.1984.1164317), which smooths the gains
over neighbouring frames and bands. So passes overshoot, as in successive over-relaxation, and are repeated. Samples
beyond full scale are then turned down by a limiter, not clipped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from transformers import SpeechT5HifiGan

from vocoder.hifigan import mel_config
from vocoder.mel import MelConfig, mel_filters

RELAXATION = 1.5  # factor of the correction in each pass
LEAST_GAIN, MOST_GAIN = math.log(0.01), math.log(10)  # -40 and 20 dB in each pass
CEILING = 0.97  # limit of samples, where full scale is 1: a converter's filters need headroom
LOOK_AHEAD = 0.25  # of n_fft; the limiter's gain falls from twice this time before a peak, and rises as long after it


def install_matching(generator: SpeechT5HifiGan) -> SpeechT5HifiGan:
    """Make ``generator`` correct its waveforms in every call, with the ``match_passes`` of its config.

    Published vocoders have no ``match_passes`` and stay as they are. Returns ``generator``.
    """
    if match_output not in generator._forward_hooks.values():
        generator.register_forward_hook(match_output, with_kwargs=True)
    return generator


def match_output(generator: SpeechT5HifiGan, args: tuple, kwargs: dict, waveform: Tensor) -> Tensor:
    """A forward hook: ``waveform (B, L)`` or (L,) matched to the input of ``generator``, (B, T, F) or (T, F)."""
    passes = match_passes(generator)
    if not passes:
        return waveform
    log_mel = args[0] if args else kwargs["spectrogram"]
    log_mel = log_mel.reshape(-1, *log_mel.shape[-2:])
    return match_mel(torch.atleast_2d(waveform), log_mel, mel_config(generator), passes).reshape(waveform.shape)


def match_passes(generator: SpeechT5HifiGan) -> int:
    """Number of passes in the config of ``generator``; 0 without one."""
    return getattr(generator.config, "match_passes", 0)


def match_mel(waveform: Tensor, log_mel: Tensor, config: MelConfig, passes: int = 1) -> Tensor:
    """``waveform (B, L)`` with the levels of its mel bands matched to ``log_mel (B, T, F)``; float32.

    A pass changes a band by -40 to 20 dB. Samples are limited to `CEILING`. Frames beyond T equal the last one.
    A sample depends on `match_reach` samples on either side.
    """
    if not passes:
        return waveform
    waveform = waveform.float()
    wanted = frames_of(log_mel, waveform, config)
    frame = framing(waveform, config)
    filters = mel_filters(config).to(waveform.device)
    spread = bin_weights(filters)
    for _ in range(passes):
        spectrum = torch.stft(waveform, **frame, return_complex=True).transpose(1, 2)  # (B, T, K)
        # as `log_mel_spectrogram`, but without clipping, so that levels beyond full scale are measured correctly
        found = (spectrum.abs() @ filters.T).clamp(min=config.floor).log()
        gain = (RELAXATION * (wanted - found)).clamp(LEAST_GAIN, MOST_GAIN) @ spread  # natural logarithm
        waveform = torch.istft((spectrum * gain.exp()).transpose(1, 2), **frame, length=waveform.shape[1])
    return limit(waveform, round(LOOK_AHEAD * config.n_fft))


def framing(waveform: Tensor, config: MelConfig) -> dict:
    """Arguments of `torch.stft` and `torch.istft` for the frames of ``config``."""
    window = torch.hann_window(config.n_fft, device=waveform.device, dtype=waveform.dtype)
    return {"n_fft": config.n_fft, "hop_length": config.hop_length, "window": window}


def frames_of(spectrogram: Tensor, waveform: Tensor, config: MelConfig) -> Tensor:
    """``spectrogram (..., T, F)`` on the device of ``waveform (B, L)``, with as many frames, the last one repeated."""
    spectrogram = spectrogram.to(waveform)  # with offloading it may be on another device
    n_frames = 1 + waveform.shape[-1] // config.hop_length
    missing = max(0, n_frames - spectrogram.shape[-2])
    beyond = spectrogram[..., -1:, :].expand(*spectrogram.shape[:-2], missing, spectrogram.shape[-1])
    return torch.cat([spectrogram, beyond], dim=-2)[..., :n_frames, :]


def match_reach(passes: int, config: MelConfig) -> int:
    """Samples on either side that a matched sample depends on."""
    return passes * config.n_fft + 2 * round(LOOK_AHEAD * config.n_fft) if passes else 0


def limit(waveform: Tensor, look_ahead: int) -> Tensor:
    """``waveform (B, L)`` or (B, A, L), turned down smoothly around samples beyond `CEILING`.

    The gain, the same for all channels, is the minimum that samples within ``look_ahead`` need, averaged over the same
    range, so that no sample exceeds the limit.
    """
    if waveform.abs().max() <= CEILING:
        return waveform
    window = {"kernel_size": 2 * look_ahead + 1, "stride": 1}
    loudest = waveform.abs().reshape(len(waveform), -1, waveform.shape[-1]).amax(dim=1, keepdim=True)  # (B, 1, L)
    peaks = functional.max_pool1d(loudest, padding=look_ahead, **window)
    gain = functional.pad((CEILING / peaks).clamp(max=1.0), (look_ahead, look_ahead), mode="replicate")
    gain = functional.avg_pool1d(gain, **window)  # (B, 1, L)
    gain = gain if waveform.ndim == 3 else gain[:, 0]
    return (waveform * gain).clamp(-CEILING, CEILING)  # for rounding


def bin_weights(filters: Tensor) -> Tensor:
    """Weights (F, K) that interpolate bands linearly to bins; 0 outside all bands."""
    triangles = filters / filters.amax(dim=1, keepdim=True).clamp(min=1e-12)  # (F, K), of height 1
    return triangles / triangles.sum(dim=0).clamp(min=1e-12)
