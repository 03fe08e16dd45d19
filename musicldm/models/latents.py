"""Audio to latents: the steps between, which pipelines and trainers share.

    audio at any rate  -> channels and rate of the model -> waveform (B, L) or (B, A, L)
                       -> planes of its spectrogram, packed into an image (B, P, T, F)
                       -> VAE -> posterior over latents (B, C, T/f, F/f), not yet scaled by `scaling_factor`

P is 1 for mono models. Chen et al. (2023), MusicLDM. https://arxiv.org/abs/2308.01546
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

from musicldm.audio.reading import HIGHEST_RATE, LOWEST_RATE
from musicldm.config.values import shown
from musicldm.kernels.tiled_decoding import one_by_one
from vocoder import MelConfig, pack_rows, spectrogram_planes


def latent_factor(vae: AutoencoderKL) -> int:
    """Frames (and rows) of the image for each latent frame (and row), f."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def latent_shape(vae: AutoencoderKL, mel: MelConfig, n_frames: int) -> tuple[int, int, int]:
    """Latents (C, T/f, F/f) of ``n_frames`` mel frames, of which those beyond a multiple of f are left out."""
    factor = latent_factor(vae)
    return vae.config.latent_channels, n_frames // factor, mel.n_mels // mel.bands_per_row // factor


def encode_image(vae: AutoencoderKL, image: Tensor) -> DiagonalGaussianDistribution:
    """The posterior over unscaled latents (B, C, T/f, F/f) of ``image (B, P, T, F)``, or of log-mels (B, T, F).

    T and F are multiples of `latent_factor`, and ``image`` lies on the device of the VAE.
    """
    image = (image if image.ndim == 4 else image.unsqueeze(1)).to(vae.dtype)
    return DiagonalGaussianDistribution(one_by_one(lambda part: vae.encode(part).latent_dist.parameters, image))


def spectrogram_image(waveform: Tensor, mel: MelConfig) -> Tensor:
    """What the VAE sees, (B, P, T, F), of ``waveform`` (B, L) or (B, A, L): the planes with bands packed into rows."""
    return pack_rows(spectrogram_planes(waveform, mel), mel.bands_per_row)


def padded_image(waveform: Tensor, mel: MelConfig, factor: int) -> Tensor:
    """`spectrogram_image` of all of ``waveform``, with silence behind it until T is a multiple of ``factor``."""
    n_samples = waveform.shape[-1]
    n_frames = -(-n_samples // (mel.hop_length * factor)) * factor
    waveform = functional.pad(waveform, (0, max(n_frames * mel.hop_length, mel.n_fft) - n_samples))
    return spectrogram_image(waveform, mel)[:, :, :n_frames]


def _float_samples(audio: np.ndarray | Tensor) -> np.ndarray:
    """``audio`` in float32; ValueError unless it is made of floating-point numbers."""
    if isinstance(audio, Tensor):
        is_float, samples = audio.is_floating_point(), audio.detach().cpu()
        samples = samples.float().numpy() if is_float else samples
    else:
        try:
            samples = np.asarray(audio)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"audio must be an array of one shape, got {shown(audio)}") from error
        is_float = samples.dtype.kind == "f"
        samples = samples.astype(np.float32, copy=False) if is_float else samples
    if not is_float:
        raise ValueError(
            f"audio must be of floating-point samples from -1 to 1, got {type(audio).__name__} of {samples.dtype}; "
            "divide whole numbers by their full scale, such as 32768"
        )
    return samples


def model_waveform(audio: np.ndarray | Tensor, sampling_rate: int, mel: MelConfig) -> Tensor:
    """``audio`` (L,), (B, L) or (B, A, L) as a mono model has it, (B, L), or another, (B, A, L): float32, on the CPU.

    Channels are averaged for a mono model, a single one is given to both of stereo. Rates are converted by soxr in high
    quality. Both as `musicldm.audio.read_audio` does.

    Raises:
        ValueError: for other shapes, no samples, NaN or infinity, or a rate that is none.
    """
    samples = _float_samples(audio)
    if samples.ndim not in (1, 2, 3) or not samples.size:
        raise ValueError(f"audio must be (L,), (B, L) or (B, A, L) with at least one sample, got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("audio holds NaN or infinity; replace these samples first")
    whole = isinstance(sampling_rate, Real) and not isinstance(sampling_rate, bool) and sampling_rate % 1 == 0
    if not whole or not LOWEST_RATE <= sampling_rate <= HIGHEST_RATE:
        limits = f"a whole number of Hz from {LOWEST_RATE} to {HIGHEST_RATE}"
        raise ValueError(f"sampling_rate must be {limits}, got {shown(sampling_rate)}")
    samples = samples if samples.ndim == 3 else np.atleast_2d(samples)[:, None]  # (B, A, L)
    if mel.audio_channels == 1:
        samples = samples.mean(axis=1, keepdims=True)
    elif samples.shape[1] not in (1, mel.audio_channels):
        raise ValueError(
            f"audio of {samples.shape[1]} channels for a model of {mel.audio_channels}; give as many, or 1"
        )
    if sampling_rate != mel.sample_rate:
        rows = [soxr.resample(row, sampling_rate, mel.sample_rate, quality="HQ") for clip in samples for row in clip]
        samples = np.stack(rows).reshape(*samples.shape[:2], -1)
        if not samples.size:
            raise ValueError(f"audio is shorter than one sample at {mel.sample_rate} Hz")
    waveform = torch.from_numpy(np.ascontiguousarray(samples))
    return waveform[:, 0] if mel.audio_channels == 1 else waveform.expand(-1, mel.audio_channels, -1)
