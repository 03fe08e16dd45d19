"""What the diffusion trainer needs of every clip, computed once and kept on disk.

clip -> log-mel -> VAE moments (2C, T/f, F/f)          latents/moments.npy, float16
     -> CLAP -> audio embedding (D,)                    embeddings/audio.npy
captions -> CLAP -> text embeddings (D,)                embeddings/text.npy, rows offsets[i] to offsets[i + 1] of clip i
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.lib.format import open_memmap
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase

from musicldm.clap import embed_audio, embed_text
from musicldm.data.clips import Clip, read_clip
from musicldm.data.shards import recording_bytes
from musicldm.tiles import one_by_one
from vocoder import MelConfig, log_mel_spectrogram

BATCH = 8
BATCHES_BETWEEN_SAVES = 25


class Conditioner(NamedTuple):
    """CLAP and what it takes to feed it."""

    clap: ClapModel
    tokenizer: PreTrainedTokenizerBase
    feature_extractor: ClapFeatureExtractor


def load_conditioner(folder: Path) -> Conditioner:
    """The CLAP of a model folder, or of that stage's own ``final``."""
    return Conditioner(
        ClapModel.from_pretrained(folder / "text_encoder").float(),
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        ClapFeatureExtractor.from_pretrained(folder / "feature_extractor"),
    )


class Cache(NamedTuple):
    """Arrays over the clips of a collection, memory-mapped."""

    moments: np.ndarray  # (N, 2C, T/f, F/f): means, then log variances
    audio: np.ndarray  # (N, D)
    text: np.ndarray  # (M, D)
    offsets: np.ndarray  # (N + 1,)


def fingerprint(clips: list[Clip], mel: MelConfig, *modules: nn.Module) -> str:
    """A digest of all that cached numbers depend on: the clips, the front end and the networks' weights."""
    digest = hashlib.sha256(repr(mel).encode())
    for clip in clips:
        digest.update(f"{clip.path.name} {recording_bytes(clip.path)} {clip.start_s} {clip.texts}".encode())
    for module in modules:
        for name, parameter in module.named_parameters():
            digest.update(
                f"{name} {parameter.double().sum().item():.12e} {parameter.double().norm().item():.12e}".encode()
            )
    return digest.hexdigest()


def latent_shape(vae: AutoencoderKL, mel: MelConfig) -> tuple[int, int, int]:
    """Latents (C, T/f, F/f) of one clip."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return vae.config.latent_channels, mel.clip_frames // factor, mel.n_mels // factor


class KeptArrays:
    """Arrays in a folder, filled row by row; one that was interrupted is continued, one of another ``key`` begun anew.

    ``shapes``: shape and type of each array by name.
    """

    def __init__(self, folder: Path, key: str, shapes: dict[str, tuple[tuple[int, ...], type]]):
        folder.mkdir(parents=True, exist_ok=True)
        self.key, self.progress_file = key, folder / "progress.json"
        progress = json.loads(self.progress_file.read_text()) if self.progress_file.exists() else {}
        self.done = progress.get("done", 0) if progress.get("key") == key else 0  # rows
        self.arrays = {
            name: open_memmap(
                folder / f"{name}.npy", "r+" if self.done else "w+", dtype=dtype, shape=None if self.done else size
            )
            for name, (size, dtype) in shapes.items()
        }

    def save(self, done: int, *, last: bool) -> None:
        """Note that ``done`` rows are complete: now and then, and at the ``last``."""
        if not last and done % (BATCHES_BETWEEN_SAVES * BATCH):
            return
        for array in self.arrays.values():
            array.flush()
        scratch = self.progress_file.with_suffix(".tmp")
        scratch.write_text(json.dumps({"key": self.key, "done": done}))
        scratch.replace(self.progress_file)
        self.done = done


def read_batches(clips: list[Clip], mel: MelConfig, kept: KeptArrays, what: str) -> Iterator[tuple[int, int, Tensor]]:
    """``(first, last, waveforms (B, L))`` of the clips that ``kept`` lacks; each is saved as the next is asked."""
    bar = tqdm(total=len(clips), initial=kept.done, unit="clip", desc=what, file=sys.stderr, mininterval=1.0)
    for first in range(kept.done, len(clips), BATCH):
        last = min(first + BATCH, len(clips))
        waves = np.stack([read_clip(clip, mel.sample_rate, mel.clip_samples) for clip in clips[first:last]])
        yield first, last, torch.from_numpy(waves)
        kept.save(last, last=last == len(clips))
        bar.update(last - first)
    bar.close()


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, log_mel: Tensor) -> Tensor:
    """Moments (B, 2C, T/f, F/f) of ``log_mel (B, T, F)``."""
    return one_by_one(lambda part: vae.encode(part).latent_dist.parameters, log_mel.unsqueeze(1))


@torch.no_grad()
def encode_clips(
    clips: list[Clip], vae: AutoencoderKL, mel: MelConfig, folder: Path, device: torch.device
) -> np.ndarray:
    """Moments (N, 2C, T/f, F/f) of ``clips``, kept in ``folder``, where an interrupted run continues."""
    channels, latent_frames, latent_bands = latent_shape(vae, mel)
    frames = mel.n_mels // latent_bands * latent_frames
    shape = len(clips), 2 * channels, latent_frames, latent_bands
    encoder = (vae.encoder, vae.quant_conv) if vae.config.use_quant_conv else (vae.encoder,)  # the decoder may train on
    key = fingerprint([clip._replace(texts=()) for clip in clips], mel, *encoder)
    kept = KeptArrays(folder, key, {"moments": (shape, np.float16)})
    vae = vae.to(device, memory_format=torch.channels_last).eval()
    for first, last, waveforms in read_batches(clips, mel, kept, "latents"):
        log_mel = log_mel_spectrogram(waveforms.to(device), mel)[:, :frames]  # (B, T, F)
        kept.arrays["moments"][first:last] = encode_moments(vae, log_mel).cpu().numpy()
    return kept.arrays["moments"]


@torch.no_grad()
def build_cache(
    clips: list[Clip],
    vae: AutoencoderKL,
    conditioner: Conditioner,
    mel: MelConfig,
    folder: Path,
    device: torch.device,
) -> Cache:
    """Fill ``folder``, continuing where an interrupted run stopped.

    Another collection starts it anew, another VAE the latents, another CLAP the embeddings.
    """
    moments = encode_clips(clips, vae, mel, folder / "latents", device)
    offsets = np.concatenate([[0], np.cumsum([len(clip.texts) for clip in clips])])
    width = conditioner.clap.config.projection_dim
    shapes = {
        "audio": ((len(clips), width), np.float32),
        "text": ((int(offsets[-1]), width), np.float32),
    }
    clap = conditioner.clap.to(device).eval()
    kept = KeptArrays(folder / "embeddings", fingerprint(clips, mel, clap), shapes)
    for first, last, waveforms in read_batches(clips, mel, kept, "embeddings"):
        heard = embed_audio(clap, conditioner.feature_extractor, waveforms.to(device), mel.sample_rate)
        kept.arrays["audio"][first:last] = heard.cpu().numpy()
        if texts := [text for clip in clips[first:last] for text in clip.texts]:
            read = embed_text(clap, conditioner.tokenizer, texts)
            kept.arrays["text"][offsets[first] : offsets[last]] = read.cpu().numpy()
    return Cache(moments, kept.arrays["audio"], kept.arrays["text"], offsets)
