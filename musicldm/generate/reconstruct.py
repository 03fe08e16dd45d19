"""How much of a recording survives the models: audio -> planes of log-mel -> latents -> planes -> audio.

The vocoder and the autoencoder bound what any generated music can sound like, so they are judged alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from transformers import SpeechT5HifiGan

from musicldm.models.latents import encode_image, latent_factor
from vocoder import MelConfig, mel_config, pack_rows, spectrogram_planes, unpack_rows, vocode_planes

# Frames on either side of a window that are computed and dropped, so that windows join without seams. The generator
# hears fewer than these; the autoencoder attends to its whole window, which is as long as in training.
VOCODER_WINDOW, VOCODER_CONTEXT = 1024, 64
VAE_CONTEXT = 1 / 16  # of its window


class Reconstruction(NamedTuple):
    """What came back, and how far from the original it is."""

    waveform: np.ndarray  # (L,), or (2, L) of stereo
    log_mel_error: float  # mean absolute difference of the log-mel spectrograms (natural logarithm), audio to audio
    vae_error: float | None  # the same for the autoencoder alone, from log-mel to log-mel


@torch.inference_mode()
def reconstruct(waveform: np.ndarray, vae: AutoencoderKL | None, vocoder: SpeechT5HifiGan) -> Reconstruction:
    """Pass ``waveform`` (L,), or (2, L) for models of stereo, at the vocoder's rate, through both models.

    Without ``vae`` through the vocoder alone. Long recordings are worked on in windows of the models' training length.
    Errors of stereo are those of mid and side.

    Raises:
        ValueError: if the waveform is shorter than one frame, or the models do not fit each other.
    """
    mel = mel_config(vocoder)
    n_samples = waveform.shape[-1]
    if n_samples < mel.n_fft:
        raise ValueError(
            f"{n_samples} samples are shorter than one frame of {mel.n_fft} samples "
            f"({mel.n_fft / mel.sample_rate:.3f} s at {mel.sample_rate} Hz); give a longer recording"
        )
    factor = 1 if vae is None else latent_factor(vae)
    if (rows := mel.n_mels // mel.bands_per_row) % factor:
        raise ValueError(
            f"the vocoder's {rows} mel bands are no multiple of the VAE's factor {factor}; take both from one model"
        )
    device, dtype = vocoder.device, vocoder.dtype
    samples = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))[None].to(device)  # (1, L) or (1, 2, L)
    original = spectrogram_planes(samples, mel)  # (1, P, 1 + L // hop, F)
    padded = functional.pad(samples, (0, -n_samples % (mel.hop_length * factor)))
    planes = spectrogram_planes(padded, mel)[:, :, :-1].to(dtype)  # (1, P, T, F), T a multiple of the factor

    vae_error = None
    if vae is not None:
        image = pack_rows(planes, mel.bands_per_row)
        image = in_windows(lambda window: autoencode(vae, window), image, *vae_window(mel, factor))
        through_vae = unpack_rows(image, mel.bands_per_row)
        n_whole = n_samples // mel.hop_length  # frames of the recording, not of the padding
        vae_error = (through_vae - planes)[:, :2, :n_whole].abs().float().mean().item()
        planes = through_vae
    vocode = partial(vocode_planes, vocoder, config=mel)
    made = in_windows(vocode, planes, VOCODER_WINDOW, VOCODER_CONTEXT, hop=mel.hop_length, axis=-1)
    made = made[..., :n_samples].float()  # (1, L) or (1, 2, L)
    error = (spectrogram_planes(made, mel) - original)[:, :2].abs().mean().item()
    return Reconstruction(made[0].cpu().numpy(), error, vae_error)


def autoencode(vae: AutoencoderKL, image: Tensor) -> Tensor:
    """``image (1, P, T, F)`` to the mean of its latents and back."""
    latents = encode_image(vae, image).mode()  # (1, C, T/f, F/f)
    return vae.decode(latents).sample.to(image.dtype)


def vae_window(mel: MelConfig, factor: int) -> tuple[int, int]:
    """Frames of one window and of its context on either side, both multiples of ``factor``."""
    size = max(mel.clip_frames // factor, 4) * factor
    return size, math.ceil(size * VAE_CONTEXT / factor) * factor


def in_windows(
    function: Callable[[Tensor], Tensor], planes: Tensor, size: int, context: int, hop: int = 1, axis: int = 2
) -> Tensor:
    """``function`` of ``planes (1, P, T, F)``, computed in windows of ``size`` frames and joined along its ``axis``.

    ``hop``: steps of the result for each frame.
    """

    def of_frames(result: Tensor, first: int, end: int) -> Tensor:
        return result.movedim(axis, -1)[..., first * hop : end * hop].movedim(-1, axis)

    n_frames = planes.shape[2]
    if n_frames <= size:
        return of_frames(function(planes), 0, n_frames)
    pieces = []
    step = size - 2 * context
    for start in range(0, n_frames, step):
        before = max(0, start - context)
        result = function(planes[:, :, before : start + step + context])
        end = min(start + step, n_frames)
        pieces.append(of_frames(result, start - before, end - before))
    return torch.cat(pieces, dim=axis)
