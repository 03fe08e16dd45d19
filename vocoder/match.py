"""A vocoder's waveform, brought nearer to the spectrogram that it was made from.

    log-mel (B, T, F) -> generator -> waveform (B, L) -> short-time spectrum -> gains of its bands -> waveform (B, L)

A small generator cannot be as quiet as it should between harmonics and after a note: it leaves noise there, which the
log-mel spectrogram, being known, tells from music. Each pass multiplies the short-time spectrum by the ratio of wanted
to found, band by band, as a Wiener filter would, and keeps the phases. Spectra of overlapping frames that do not agree
become a waveform by least squares (Griffin and Lim, 1984, https://doi.org/10.1109/TASSP.1984.1164317), which blurs the
gains over neighbouring frames and bands: so passes overshoot, as in successive over-relaxation, and follow one another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import SpeechT5HifiGan

from vocoder.hifigan import mel_config
from vocoder.mel import MelConfig, log_mel_spectrogram, mel_filters

RELAXATION = 1.5  # by how much of what is found wanting a pass changes the spectrum
LEAST_GAIN, MOST_GAIN = math.log(0.01), math.log(10)  # -40 and 20 dB in each pass


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

    A pass changes them by -40 to 20 dB. Samples are float32 and stay within [-1, 1]. Frames beyond T are taken to be
    like the last. A sample depends on ``passes * n_fft`` samples to either side.
    """
    waveform = waveform.float()
    log_mel = log_mel.to(waveform)  # with offload it may lie elsewhere
    n_frames = 1 + waveform.shape[1] // config.hop_length
    beyond = log_mel[:, -1:].expand(-1, max(0, n_frames - log_mel.shape[1]), -1)
    wanted = torch.cat([log_mel, beyond], dim=1)[:, :n_frames]
    frame = {
        "n_fft": config.n_fft,
        "hop_length": config.hop_length,
        "window": torch.hann_window(config.n_fft, device=waveform.device),
    }
    spread = _spread(config).to(waveform.device)
    for _ in range(passes):
        found = log_mel_spectrogram(waveform, config)
        gain = (RELAXATION * (wanted - found)).clamp(LEAST_GAIN, MOST_GAIN) @ spread  # (B, T, K), natural logarithm
        spectrum = torch.stft(waveform, **frame, return_complex=True) * gain.exp().transpose(1, 2)
        waveform = torch.istft(spectrum, **frame, length=waveform.shape[1]).clamp(-1.0, 1.0)
    return waveform


def _spread(config: MelConfig) -> Tensor:
    """Weights (F, K) by which bins take after the bands around them: linear in between, nothing outside all bands."""
    triangles = mel_filters(config)
    triangles = triangles / triangles.amax(dim=1, keepdim=True).clamp(min=1e-12)  # (F, K), of height 1
    return triangles / triangles.sum(dim=0).clamp(min=1e-12)
