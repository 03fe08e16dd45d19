"""Audio to latents: the steps between that pipelines and trainers share.

    audio at any rate  -> channels averaged, resampled -> waveform (B, L) -> log-mel (B, T, F)
                       -> VAE -> posterior over latents (B, C, T/f, F/f), not yet scaled by `scaling_factor`

Chen et al. (2023), MusicLDM. https://arxiv.org/abs/2308.01546
"""

from __future__ import annotations

from numbers import Real

import numpy as np
import soxr
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from torch.nn import functional

from musicldm.kernels.tiled_decoding import one_by_one
from vocoder import MelConfig, log_mel_spectrogram


def latent_factor(vae: AutoencoderKL) -> int:
    """Mel frames (and bands) for each latent frame (and band), f."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def encode_log_mel(vae: AutoencoderKL, log_mel: Tensor) -> DiagonalGaussianDistribution:
    """The posterior over unscaled latents (B, C, T/f, F/f) of ``log_mel (B, T, F)``, or of planes (B, P, T, F).

    T and F are multiples of `latent_factor`, and ``log_mel`` lies on the device of the VAE.
    """
    image = (log_mel if log_mel.ndim == 4 else log_mel.unsqueeze(1)).to(vae.dtype)
    return DiagonalGaussianDistribution(one_by_one(lambda part: vae.encode(part).latent_dist.parameters, image))


def padded_log_mel(waveform: Tensor, mel: MelConfig, factor: int) -> Tensor:
    """Log-mel (B, T, F) of all of ``waveform (B, L)``, with silence behind it until T is a multiple of ``factor``."""
    n_samples = waveform.shape[1]
    n_frames = -(-n_samples // (mel.hop_length * factor)) * factor
    waveform = functional.pad(waveform, (0, max(n_frames * mel.hop_length, mel.n_fft) - n_samples))
    return log_mel_spectrogram(waveform, mel)[:, :n_frames]


def mono_waveforms(audio: np.ndarray | Tensor, sampling_rate: int, to_rate: int) -> Tensor:
    """``audio`` (L,), (B, L) or (B, A, L) as float32 (B, L') at ``to_rate`` Hz, on the CPU.

    Channels are averaged, and rates converted by soxr in high quality, as `musicldm.audio.read_audio` does.

    Raises:
        ValueError: for other shapes, no samples, NaN or infinity, or a rate that is none.
    """
    samples = audio.detach().cpu().float().numpy() if isinstance(audio, Tensor) else np.asarray(audio, np.float32)
    if samples.ndim not in (1, 2, 3) or not samples.size:
        raise ValueError(f"audio must be (L,), (B, L) or (B, A, L) with at least one sample, got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("audio holds NaN or infinity; replace these samples first")
    if not isinstance(sampling_rate, Real) or not sampling_rate >= 1 or sampling_rate != int(sampling_rate):
        raise ValueError(f"sampling_rate must be a positive whole number of Hz, got {sampling_rate!r}")
    samples = samples.mean(axis=1) if samples.ndim == 3 else np.atleast_2d(samples)  # (B, L)
    if sampling_rate != to_rate:
        samples = np.stack([soxr.resample(row, sampling_rate, to_rate, quality="HQ") for row in samples])
        if not samples.size:
            raise ValueError(f"audio is shorter than one sample at {to_rate} Hz")
    return torch.from_numpy(np.ascontiguousarray(samples))
