"""A vocoder's waveform, brought nearer to the spectrogram that it was made from.

    log-mel (B, T, F) -> generator -> waveform (B, L) -> short-time spectrum -> gains of its bands -> waveform (B, L)

A small generator cannot be as quiet as it should between harmonics and after a note: it leaves noise there, which the
log-mel spectrogram, being known, tells from music. Each pass multiplies the short-time spectrum by the ratio of wanted
to found, band by band, as a Wiener filter would, and keeps the phases. Spectra of overlapping frames that do not agree
become a waveform by least squares (Griffin and Lim, 1984, https://doi.org/10.1109/TASSP.1984.1164317), which blurs the
gains over neighbouring frames and bands: so passes overshoot, as in successive over-relaxation, and follow one another.
What is then louder than full scale allows is turned down as a whole, as a limiter does, and not cut off.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from transformers import SpeechT5HifiGan

from vocoder.hifigan import mel_config
from vocoder.mel import MelConfig, mel_filters

RELAXATION = 1.5  # by how much of what is found wanting a pass changes the spectrum
LEAST_GAIN, MOST_GAIN = math.log(0.01), math.log(10)  # -40 and 20 dB in each pass
CEILING = 0.97  # of the samples, where full scale is 1: a converter's filters need some room
LOOK_AHEAD = 0.25  # of n_fft: how early a limiter's gain begins to fall, and how late it has risen again, is twice this


def install_matching(generator: SpeechT5HifiGan) -> SpeechT5HifiGan:
    """``generator``, which from now on gives waveforms matched as often as its config says, however it is called.

    ``match_passes`` of the config; published vocoders have none, and are left as they are.
    """
    if match_output not in generator._forward_hooks.values():
        generator.register_forward_hook(match_output, with_kwargs=True)
    return generator


def match_output(generator: SpeechT5HifiGan, args: tuple, kwargs: dict, waveform: Tensor) -> Tensor:
    """A hook: ``waveform (B, L)`` or (L,) matched to the log-mel (B, T, F) or (T, F) that ``generator`` was given."""
    passes = match_passes(generator)
    if not passes:
        return waveform
    log_mel = args[0] if args else kwargs["spectrogram"]
    log_mel = log_mel.reshape(-1, *log_mel.shape[-2:])
    return match_mel(torch.atleast_2d(waveform), log_mel, mel_config(generator), passes).reshape(waveform.shape)


def match_passes(generator: SpeechT5HifiGan) -> int:
    """How often what ``generator`` makes is to be matched."""
    return getattr(generator.config, "match_passes", 0)


def match_mel(waveform: Tensor, log_mel: Tensor, config: MelConfig, passes: int = 1) -> Tensor:
    """``waveform (B, L)`` with its mel bands as loud as in ``log_mel (B, T, F)``.

    A pass changes them by -40 to 20 dB. Samples are float32; where the spectrogram asks for more than `CEILING`, they
    are limited to it. Frames beyond T are taken to be like the last. A sample depends on `match_reach` samples to
    either side.
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
        # as `log_mel_spectrogram`, without its clipping: what is beyond full scale now is found to be so
        found = (spectrum.abs() @ filters.T).clamp(min=config.floor).log()
        gain = (RELAXATION * (wanted - found)).clamp(LEAST_GAIN, MOST_GAIN) @ spread  # natural logarithm
        waveform = torch.istft((spectrum * gain.exp()).transpose(1, 2), **frame, length=waveform.shape[1])
    return limit(waveform, round(LOOK_AHEAD * config.n_fft))


def framing(waveform: Tensor, config: MelConfig) -> dict:
    """Arguments of `torch.stft` and `torch.istft` for the front end's frames."""
    window = torch.hann_window(config.n_fft, device=waveform.device, dtype=waveform.dtype)
    return {"n_fft": config.n_fft, "hop_length": config.hop_length, "window": window}


def frames_of(spectrogram: Tensor, waveform: Tensor, config: MelConfig) -> Tensor:
    """``spectrogram (..., T, F)`` on the device of ``waveform (B, L)``, with as many frames, the last one repeated."""
    spectrogram = spectrogram.to(waveform)  # with offload it may lie elsewhere
    n_frames = 1 + waveform.shape[-1] // config.hop_length
    missing = max(0, n_frames - spectrogram.shape[-2])
    beyond = spectrogram[..., -1:, :].expand(*spectrogram.shape[:-2], missing, spectrogram.shape[-1])
    return torch.cat([spectrogram, beyond], dim=-2)[..., :n_frames, :]


def match_reach(passes: int, config: MelConfig) -> int:
    """Samples to either side that a matched sample depends on."""
    return passes * config.n_fft + 2 * round(LOOK_AHEAD * config.n_fft) if passes else 0


def limit(waveform: Tensor, look_ahead: int) -> Tensor:
    """``waveform (B, L)`` or (B, A, L) with no sample beyond `CEILING`, turned down smoothly around those that were.

    The gain, one for all channels, is the least that the samples within ``look_ahead`` need, averaged over as many: so
    none is exceeded.
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
    """Weights (F, K) by which bins take after the bands around them: linear in between, nothing outside all bands."""
    triangles = filters / filters.amax(dim=1, keepdim=True).clamp(min=1e-12)  # (F, K), of height 1
    return triangles / triangles.sum(dim=0).clamp(min=1e-12)
