"""What the diffusion trainer needs of every clip, computed once and kept on disk.

clip -> log-mel -> VAE moments (2C, T/f, F/f)          latents/moments.npy, float16
     -> CLAP -> audio embedding (D,)                    embeddings/audio.npy
captions -> CLAP -> text embeddings (D,)                embeddings/text.npy, rows offsets[i] to offsets[i + 1] of clip i
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL
from numpy.lib.format import open_memmap
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerBase, SpeechT5HifiGan

from musicldm.audio.output import check_mark, sole_writer, write_whole
from musicldm.data.clips import Clip, read_clip
from musicldm.data.shards import recording_identity
from musicldm.models.clap import embed_audio, embed_text
from musicldm.models.latents import encode_image, latent_factor, latent_shape, spectrogram_image
from vocoder import MelConfig

BATCH = 8
BLOCK = 25 * BATCH  # rows between two saves
KEY = re.compile(r"([0-9a-f]{64,128}( \d+)?)?")  # digests and a number; empty while arrays are made


class Conditioner(NamedTuple):
    """CLAP and what it takes to feed it."""

    clap: ClapModel
    tokenizer: PreTrainedTokenizerBase
    feature_extractor: ClapFeatureExtractor


class Parts(NamedTuple):
    """The trained models that the diffusion model works between."""

    vae: AutoencoderKL
    vocoder: SpeechT5HifiGan
    conditioner: Conditioner


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
    recordings = {path: recording_identity(path) for path in dict.fromkeys(clip.path for clip in clips)}
    for clip in clips:
        about = f"{clip.path.name} {recordings[clip.path]} {clip.start_s} {clip.texts}"
        digest.update(about.encode(errors="surrogatepass"))
    for module in modules:
        for name, parameter in module.named_parameters():
            digest.update(
                f"{name} {parameter.double().sum().item():.12e} {parameter.double().norm().item():.12e}".encode()
            )
    return digest.hexdigest()


def clip_images(waveform: Tensor, vae: AutoencoderKL, mel: MelConfig) -> Tensor:
    """What the VAE encodes of clips: (B, P, T, F) of ``waveform`` (B, L) or (B, A, L), T as long as it takes."""
    factor = latent_factor(vae)
    return spectrogram_image(waveform, mel)[:, :, : mel.clip_frames // factor * factor]


class KeptArrays:
    """Arrays in a folder, filled block by block by all processes of one machine.

    One that was interrupted is continued, by however many processes; one of another ``key`` is begun anew. Processes
    of other machines wait: two of them that write a page of one file may undo each other's work.

    ``shapes``: shape and type of each array by name; ``n_rows`` of the first axis are counted.
    """

    def __init__(self, folder: Path, key: str, n_rows: int, shapes: dict[str, tuple[tuple[int, ...], type]]):
        self.n_rows, self.state = n_rows, PartialState()
        shapes = shapes | {"filled": ((math.ceil(n_rows / BLOCK),), np.bool_)}
        key_file = folder / "key.txt"
        with sole_writer(folder, "train", wait_s=120) if self.state.is_main_process else nullcontext():
            if self.state.is_main_process and _key_of(key_file) != key:
                check_mark(folder, key_file.name, [f"{name}.npy" for name in shapes], "train")
                write_whole(key_file, b"")
                for name, (size, dtype) in shapes.items():
                    (folder / f"{name}.npy").unlink(missing_ok=True)  # another run may read it on
                    open_memmap(folder / f"{name}.npy", "w+", dtype=dtype, shape=size)
                write_whole(key_file, key.encode())
            self.state.wait_for_everyone()
            self.arrays = {name: open_memmap(folder / f"{name}.npy", "r+") for name in shapes}
            self.state.wait_for_everyone()
        self.filled = self.arrays.pop("filled")

    def batches(self, what: str, unit: str) -> Iterator[tuple[int, int]]:
        """``(first, last)`` of up to `BATCH` rows for this process to fill, which it has when it asks for the next.

        The last answer comes when all processes have filled theirs.
        """
        missing = np.flatnonzero(~self.filled)
        self.state.wait_for_everyone()  # before the first of them fills more
        index, helpers = self.state.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        mine = missing[index::helpers] if index == self.state.process_index and index < helpers else missing[:0]
        rows = [(int(block) * BLOCK, min((int(block) + 1) * BLOCK, self.n_rows)) for block in mine]
        total = sum(end - begin for begin, end in rows)
        quiet = not self.state.is_main_process
        bar = tqdm(total=total, unit=unit, desc=what, file=sys.stderr, mininterval=1.0, disable=quiet)
        for begin, end in rows:
            for first in range(begin, end, BATCH):
                last = min(first + BATCH, end)
                yield first, last
                bar.update(last - first)
            for array in self.arrays.values():
                array.flush()
            self.filled[begin // BLOCK] = True
            self.filled.flush()
        bar.close()
        self.state.wait_for_everyone()


def _key_of(file: Path) -> str | None:
    """What ``file`` says that the arrays beside it are of, by whatever version; None without it.

    Raises:
        FileExistsError: it is something else, which no training has written.
    """
    if not file.exists():
        return None
    key = file.read_text(errors="replace")
    if not KEY.fullmatch(key):
        raise FileExistsError(
            f"{file} was not written by `musicldm train`, which would replace it and the arrays beside it: nothing was "
            "changed; move it away, or give another folder with --out or cache=FOLDER"
        )
    return key


def read_batches(clips: list[Clip], mel: MelConfig, kept: KeptArrays, what: str) -> Iterator[tuple[int, int, Tensor]]:
    """``(first, last, waveforms)``, (B, L) or (B, A, L), of this process's share of the clips that ``kept`` lacks."""
    for first, last in kept.batches(what, "clip"):
        some = clips[first:last]
        waves = [read_clip(clip, mel.sample_rate, mel.clip_samples, channels=mel.audio_channels) for clip in some]
        yield first, last, torch.from_numpy(np.stack(waves))


@torch.no_grad()
def encode_clips(
    clips: list[Clip], vae: AutoencoderKL, mel: MelConfig, folder: Path, device: torch.device
) -> np.ndarray:
    """Moments (N, 2C, T/f, F/f) of ``clips``, kept in ``folder``, where an interrupted run continues."""
    channels, *size = latent_shape(vae, mel, mel.clip_frames)
    shape = len(clips), 2 * channels, *size
    encoder = (vae.encoder, vae.quant_conv) if vae.config.use_quant_conv else (vae.encoder,)  # the decoder may train on
    key = fingerprint([clip._replace(texts=()) for clip in clips], mel, *encoder)
    kept = KeptArrays(folder, key, len(clips), {"moments": (shape, np.float16)})
    vae = vae.to(device, memory_format=torch.channels_last).eval()
    for first, last, waveforms in read_batches(clips, mel, kept, "latents"):
        posterior = encode_image(vae, clip_images(waveforms.to(device), vae, mel))
        kept.arrays["moments"][first:last] = posterior.parameters.cpu().numpy()
    return kept.arrays["moments"]


@torch.no_grad()
def build_cache(clips: list[Clip], parts: Parts, mel: MelConfig, folder: Path, device: torch.device) -> Cache:
    """Fill ``folder``, all processes of a machine together, continuing where an interrupted run stopped.

    Another collection starts it anew, another VAE the latents, another CLAP the embeddings.
    """
    conditioner = parts.conditioner
    moments = encode_clips(clips, parts.vae, mel, folder / "latents", device)
    offsets = np.concatenate([[0], np.cumsum([len(clip.texts) for clip in clips])])
    width = conditioner.clap.config.projection_dim
    shapes = {
        "audio": ((len(clips), width), np.float32),
        "text": ((int(offsets[-1]), width), np.float32),
    }
    clap = conditioner.clap.to(device).eval()
    kept = KeptArrays(folder / "embeddings", fingerprint(clips, mel, clap), len(clips), shapes)
    for first, last, waveforms in read_batches(clips, mel, kept, "embeddings"):
        heard = embed_audio(clap, conditioner.feature_extractor, waveforms.to(device), mel.sample_rate)
        kept.arrays["audio"][first:last] = heard.cpu().numpy()
        if texts := [text for clip in clips[first:last] for text in clip.texts]:
            read = embed_text(clap, conditioner.tokenizer, texts)
            kept.arrays["text"][offsets[first] : offsets[last]] = read.cpu().numpy()
    return Cache(moments, kept.arrays["audio"], kept.arrays["text"], offsets)
