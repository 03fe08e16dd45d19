"""How much of a recording survives the models: audio -> log-mel -> latents -> log-mel -> audio.

The vocoder and the autoencoder bound what any generated music can sound like, so they are judged alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from transformers import SpeechT5HifiGan

from vocoder import MelConfig, log_mel_spectrogram, mel_config

# Frames on either side of a window that are computed and dropped, so that windows join without seams. The generator
# hears fewer than these; the autoencoder attends to its whole window, which is as long as in training.
VOCODER_WINDOW, VOCODER_CONTEXT = 1024, 64
VAE_CONTEXT = 1 / 16  # of its window


class Reconstruction(NamedTuple):
    """What came back, and how far from the original it is."""

    waveform: np.ndarray  # (L,)
    log_mel_error: float  # mean absolute difference of the log-mel spectrograms (natural logarithm), audio to audio
    vae_error: float | None  # the same for the autoencoder alone, from log-mel to log-mel


@torch.inference_mode()
def reconstruct(waveform: np.ndarray, vae: AutoencoderKL | None, vocoder: SpeechT5HifiGan) -> Reconstruction:
    """Pass ``waveform (L,)``, at the vocoder's rate, through both models; without ``vae`` through the vocoder alone.

    Long recordings are worked on in windows of the models' training length.

    Raises:
        ValueError: if the waveform is shorter than one frame, or the models do not fit each other.
    """
    mel = mel_config(vocoder)
    if len(waveform) < mel.n_fft:
        raise ValueError(
            f"{len(waveform)} samples are shorter than one frame of {mel.n_fft} samples "
            f"({mel.n_fft / mel.sample_rate:.3f} s at {mel.sample_rate} Hz); give a longer recording"
        )
    factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
    if mel.n_mels % factor:
        raise ValueError(
            f"the vocoder's {mel.n_mels} mel bands are no multiple of the VAE's factor {factor}; "
            "take both from one model"
        )
    device, dtype = vocoder.device, vocoder.dtype
    samples = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))[None].to(device)  # (1, L)
    original = log_mel_spectrogram(samples, mel)  # (1, 1 + L // hop, F)
    padded = functional.pad(samples, (0, -samples.shape[1] % (mel.hop_length * factor)))
    frames = log_mel_spectrogram(padded, mel)[:, :-1].to(dtype)  # (1, T, F), T a multiple of the factor

    vae_error = None
    if vae is not None:
        through_vae = in_windows(lambda window: autoencode(vae, window), frames, *vae_window(mel, factor), hop=1)
        n_whole = len(waveform) // mel.hop_length  # frames of the recording, not of the padding
        vae_error = (through_vae - frames)[:, :n_whole].abs().float().mean().item()
        frames = through_vae
    made = in_windows(vocoder, frames, VOCODER_WINDOW, VOCODER_CONTEXT, hop=mel.hop_length)
    made = made[:, : samples.shape[1]].float()  # (1, L)
    error = (log_mel_spectrogram(made, mel) - original).abs().mean().item()
    return Reconstruction(made[0].cpu().numpy(), error, vae_error)


def autoencode(vae: AutoencoderKL, mel: Tensor) -> Tensor:
    """``mel (1, T, F)`` to the mean of its latents and back."""
    latents = vae.encode(mel[:, None].to(vae.dtype)).latent_dist.mode()  # (1, C, T/f, F/f)
    return vae.decode(latents).sample[:, 0].to(mel.dtype)


def vae_window(mel: MelConfig, factor: int) -> tuple[int, int]:
    """Frames of one window and of its context on either side, both multiples of ``factor``."""
    size = max(mel.clip_frames // factor, 4) * factor
    return size, math.ceil(size * VAE_CONTEXT / factor) * factor


def in_windows(function: Callable[[Tensor], Tensor], mel: Tensor, size: int, context: int, hop: int) -> Tensor:
    """``function`` of ``mel (1, T, F)``, computed in windows of ``size`` frames and joined along time.

    ``hop``: steps of the result for each frame.
    """
    n_frames = mel.shape[1]
    if n_frames <= size:
        return function(mel)[:, : n_frames * hop]
    pieces = []
    step = size - 2 * context
    for start in range(0, n_frames, step):
        before = max(0, start - context)
        result = function(mel[:, before : start + step + context])
        end = min(start + step, n_frames)
        pieces.append(result[:, (start - before) * hop : (end - before) * hop])
    return torch.cat(pieces, dim=1)
