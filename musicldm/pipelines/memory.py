"""How much memory a call takes, from the sizes of the parts: absurd lengths are refused before anything runs."""

import math

import psutil
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import SpeechT5HifiGan

from musicldm.kernels import tiled_decoding as tiles
from musicldm.models.latents import latent_factor
from vocoder import mel_config

# Tensors of the widest layer's size that decoding holds at its peak: measured on the released sizes.
VAE_TENSORS, VOCODER_TENSORS = 6, 13
ATTENTION_TENSORS = 8  # of the size of the VAE's coarsest level, in its middle attention
UNET_TENSORS = 28  # of its first level's size, skip connections and all, for each item; 18 of mini


def decoding_memory(
    vae: AutoencoderKL, vocoder: SpeechT5HifiGan, latent_shape: tuple[int, ...], device: torch.device
) -> int:
    """About how many bytes decoding latents of that shape takes, beside the weights; a CPU takes one at a time."""
    config, mel, n_frames = vocoder.config, mel_config(vocoder), latent_shape[2] * latent_factor(vae)
    rows = mel.n_mels // mel.bands_per_row
    n_items = 1 if device.type == "cpu" else latent_shape[0]
    vae_width = max(vae.config.block_out_channels[:2]) * rows
    vocoder_width = max(
        config.upsample_initial_channel / 2 ** (i + 1) * math.prod(config.upsample_rates[: i + 1])
        for i in range(len(config.upsample_rates))
    )
    held, of_vae, of_vocoder = 0.0, n_frames, n_frames  # frames that are worked on at a time
    if n_frames > tiles.LONGEST_WHOLE:
        held = n_frames * rows * _held_in_pieces(vae)
        of_vae = min(n_frames, tiles.LATENT_FRAMES * latent_factor(vae))
        of_vocoder = min(n_frames, tiles.MEL_FRAMES + 2 * tiles.reach(vocoder))
    size = vae.dtype.itemsize
    vae_bytes = held + VAE_TENSORS * vae_width * of_vae * size
    vocoder_bytes = mel.audio_channels * VOCODER_TENSORS * vocoder_width * of_vocoder * size
    return int(n_items * max(vae_bytes, vocoder_bytes))


def _held_in_pieces(vae: AutoencoderKL) -> float:
    """The most bytes for each value of the log-mel that `tiles.decode` holds: a block's input and its first layer."""
    wide, scale = vae.config.block_out_channels[-1], 4.0 ** (1 - len(vae.config.block_out_channels))
    before = wide * scale * vae.decoder.conv_in.weight.dtype.itemsize
    most = ATTENTION_TENSORS * before
    for level in vae.decoder.up_blocks:
        for block in level.resnets:
            after = scale * block.out_channels * block.conv1.weight.dtype.itemsize
            most, before = max(most, before + after), after
        scale *= 4
    return most


def check_memory(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    vocoder: SpeechT5HifiGan,
    latent_shape: tuple[int, ...],
    device: torch.device,
    frames_at_once: int | None = None,
    evaluations: int = 2,
) -> None:
    """ValueError if music from latents of that shape needs more memory than ``device`` has, as by absurd lengths.

    The UNet sees all items at once, or of windows ``frames_at_once``, so many times for guidance; the decoders
    `decoding_memory`, beside spectrograms and waveforms, which are there singly and joined.
    """
    n_items, _, latent_frames, latent_bands = latent_shape
    mel, factor = mel_config(vocoder), latent_factor(vae)
    values = mel.planes * mel.n_mels + mel.audio_channels * mel.hop_length  # of spectrograms and samples, for a frame
    results = 2 * n_items * latent_frames * factor * values * torch.float32.itemsize
    seen = n_items * latent_frames
    positions = evaluations * (seen if frames_at_once is None else min(seen, frames_at_once)) * latent_bands
    denoising = UNET_TENSORS * positions * unet.config.block_out_channels[0] * unet.dtype.itemsize
    needed = max(denoising, decoding_memory(vae, vocoder, latent_shape, device) + results)
    if device.type == "cuda":
        present = torch.cuda.get_device_properties(device).total_memory
    else:
        present = psutil.virtual_memory().total
    if needed > present:
        seconds = latent_frames * factor * mel.hop_length / mel.sample_rate
        raise ValueError(
            f"{n_items} waveform(s) of audio_length_in_s={seconds:g} need about {needed / 2**30:.3g} GiB of memory, "
            f"there are {present / 2**30:.3g} GiB; ask for at most about {seconds * present / needed:.3g} s"
        )
