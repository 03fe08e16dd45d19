"""Mixtures and their conditions, made in batches ahead of training and kept on disk.

    audio, plain   mixture -> log-mel -> VAE moments;  mixture -> CLAP -> condition
    latent         both parts -> log-mel -> VAE -> z = lam z_a + (1 - lam) z_b, the target;
                   z -> decode -> vocoder -> CLAP -> condition

Chen et al. (2023), MusicLDM, section 3.2. https://arxiv.org/abs/2308.01546. The condition of a mixture is always the
embedding of something that sounds; embeddings are never interpolated.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from transformers import SpeechT5HifiGan

from augment.mixup import mix_latents
from musicldm.config import DiffusionConfig
from musicldm.data.clips import Clip
from musicldm.data.collection import Collection
from musicldm.data.items import Item, item_rng
from musicldm.data.mixup import BeatSynchronousMixup, Mixture, MixupSettings
from musicldm.kernels.precision import lower_decoders
from musicldm.kernels.tiled_decoding import one_by_one
from musicldm.models.clap import embed_audio, embed_text
from musicldm.models.latents import encode_image, latent_shape
from musicldm.pipelines.optimize import computes_bfloat16
from musicldm.train.diffusion.cache import Conditioner, KeptArrays, Parts, clip_images, fingerprint
from vocoder import MelConfig, mel_config, unpack_rows, vocode_planes

CERTAIN = -30.0  # log variance of a latent that is the target itself: the lowest that the VAE knows


class Mixtures(NamedTuple):
    """Arrays over the mixtures of one round, memory-mapped; rows ``per_clip * i`` and on are anchored in clip i."""

    moments: np.ndarray  # (N, 2C, T/f, F/f): means, then log variances
    audio: np.ndarray  # (N, D) embeddings of what is heard
    text: np.ndarray  # (N, D) embeddings of the captions
    made: np.ndarray  # (N,) 0: no partner was found; 1: mixed; 2: mixed, with a caption


def author_length(made: Tensor, n_samples: int) -> Tensor:
    """The vocoder's ``made (..., M)`` as ``(..., n_samples)``, as the authors do it.

    Of another length than asked for, which T frames always give, it is cut to 0.9 of the length and padded with zeros.
    """
    if made.shape[-1] == n_samples:
        return made
    made = made[..., : int(0.9 * n_samples)]
    return functional.pad(made, (0, n_samples - made.shape[-1]))


@torch.no_grad()
def sample_latents(vae: AutoencoderKL, log_mel: Tensor, noise: Tensor) -> Tensor:
    """Unscaled latents (B, C, T/f, F/f) of ``log_mel (B, P, T, F)``: mean + standard deviation * noise."""
    posterior = encode_image(vae, log_mel)
    return posterior.mean + posterior.std * noise


@torch.no_grad()
def hear_latents(
    vae: AutoencoderKL, vocoder: SpeechT5HifiGan, latents: Tensor, n_samples: int, *, as_authors: bool = False
) -> tuple[Tensor, Tensor]:
    """Planes (B, P, T, F) and waveform (B, n_samples) or (B, A, n_samples) of unscaled ``latents (B, C, T/f, F/f)``."""
    mel = mel_config(vocoder)
    planes = unpack_rows(one_by_one(lambda part: vae.decode(part).sample, latents), mel.bands_per_row)
    waveform = one_by_one(lambda part: vocode_planes(vocoder, part, mel), planes)
    if as_authors:
        return planes, author_length(waveform, n_samples)
    waveform = waveform[..., :n_samples]
    return planes, functional.pad(waveform, (0, n_samples - waveform.shape[-1]))


class Maker(NamedTuple):
    """The networks that turn mixtures into targets and conditions."""

    vae: AutoencoderKL
    vocoder: SpeechT5HifiGan
    conditioner: Conditioner
    mel: MelConfig
    device: torch.device

    @torch.no_grad()
    def moments_and_condition(
        self, dataset: BeatSynchronousMixup, items: list[Item], mixtures: list[Mixture]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Moments (B, 2C, T/f, F/f) and condition (B, D) of ``mixtures``, which belong to ``items``."""
        if dataset.settings.kind == "latent":
            shape = latent_shape(self.vae, self.mel, self.mel.clip_frames)
            latents = []
            for part in ("a", "b"):
                draws = [item_rng(dataset.settings.seed, item, f"posterior {part}") for item in items]
                noise = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in draws])
                waveform = self._stack([getattr(mixture, part) for mixture in mixtures])
                log_mel = clip_images(waveform, self.vae, self.mel)
                latents.append(sample_latents(self.vae, log_mel, torch.from_numpy(noise).to(self.device)))
            mixed = mix_latents(*latents, np.array([mixture.lam for mixture in mixtures]))
            _, waveform = hear_latents(
                self.vae, self.vocoder, mixed, self.mel.clip_samples, as_authors=dataset.settings.mode == "paper"
            )
            moments = torch.cat([mixed, torch.full_like(mixed, CERTAIN)], dim=1)
        else:
            waveform = self._stack([mixture.waveform for mixture in mixtures])
            moments = encode_image(self.vae, clip_images(waveform, self.vae, self.mel)).parameters
        heard = embed_audio(self.conditioner.clap, self.conditioner.feature_extractor, waveform, self.mel.sample_rate)
        return moments.cpu().numpy(), heard.cpu().numpy()

    def texts(self, captions: list[str]) -> np.ndarray:
        """Embeddings (B, D) of captions."""
        return embed_text(self.conditioner.clap, self.conditioner.tokenizer, captions).detach().cpu().numpy()

    def _stack(self, waveforms: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(waveforms).astype(np.float32, copy=False)).to(self.device)


class MixtureRounds:
    """The mixtures of each epoch: one round for all of them, or fresh ones whenever a new epoch begins.

    A round is made when it is first asked for; an interrupted one is continued. Two rounds are kept, as a batch may
    hold the end of one epoch and the beginning of the next.
    """

    def __init__(self, dataset: BeatSynchronousMixup, maker: Maker, folder: Path, fresh: bool, key: str):
        self.dataset, self.maker, self.folder, self.fresh, self.key = dataset, maker, folder, fresh, key
        self.rounds: dict[int, Mixtures] = {}

    def of(self, epoch: int) -> Mixtures:
        """The mixtures that the items of ``epoch`` draw from."""
        number = epoch if self.fresh else 0
        if number not in self.rounds:
            for old in [old for old in self.rounds if old < number - 1]:
                del self.rounds[old]
                shutil.rmtree(self.folder / f"mixtures-{old}", ignore_errors=True)
            self.rounds[number] = make_round(
                self.dataset, self.maker, self.folder / f"mixtures-{number}", number, self.key
            )
        return self.rounds[number]

    def draw(self, item: Item, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Moments, audio embedding (D,) and text embeddings (0 or 1, D) of a mixture anchored in clip ``item.index``.

        None if that one found no partner.
        """
        mixtures, n = self.of(item.epoch), self.dataset.settings.per_clip
        row = n * item.index + int(rng.integers(n))
        if not mixtures.made[row]:
            return None
        captions = mixtures.text[row : row + int(mixtures.made[row] == 2)]
        return mixtures.moments[row], mixtures.audio[row], captions


@torch.no_grad()
def make_round(dataset: BeatSynchronousMixup, maker: Maker, folder: Path, number: int, key: str) -> Mixtures:
    """Fill ``folder`` with all mixtures of round ``number``, or continue where an interrupted run stopped."""
    width = maker.conditioner.clap.config.projection_dim
    channels, *size = latent_shape(maker.vae, maker.mel, maker.mel.clip_frames)
    n = len(dataset)
    shapes = {
        "moments": ((n, 2 * channels, *size), np.float16),
        "audio": ((n, width), np.float32),
        "text": ((n, width), np.float32),
        "made": ((n,), np.uint8),
    }
    kept = KeptArrays(folder, f"{key} {number}", n, shapes)
    for module in (maker.vae, maker.vocoder, maker.conditioner.clap):
        module.to(maker.device).eval()
    for first, last in kept.batches("mixtures", "mixture"):
        items = [Item(number, index) for index in range(first, last)]
        drawn = [(item, mixture) for item in items if (mixture := dataset[item]) is not None]
        rows = [item.index for item, _ in drawn]
        if drawn:
            moments, heard = maker.moments_and_condition(dataset, *map(list, zip(*drawn, strict=True)))
            kept.arrays["moments"][rows], kept.arrays["audio"][rows], kept.arrays["made"][rows] = moments, heard, 1
        if said := [(item.index, mixture.text) for item, mixture in drawn if mixture.text]:
            rows, captions = map(list, zip(*said, strict=True))
            kept.arrays["text"][rows], kept.arrays["made"][rows] = maker.texts(captions), 2
    settings = dataset.settings
    if not kept.arrays["made"].any():
        raise ValueError(
            f"none of the {n} clips has a partner to be mixed with (mixup={settings.kind}, "
            f"mixup_mode={settings.mode}): give more recordings, mixup=plain or mixup=none"
        )
    return Mixtures(**kept.arrays)


def sixteen_bits(mixed_precision: str, device: torch.device) -> torch.dtype | None:
    """In what mixed latents are decoded to be heard, as the pipeline would; None for float32."""
    if mixed_precision == "no" or (device.type == "cpu" and not computes_bfloat16()):
        return None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]


def make_maker(config: DiffusionConfig, parts: Parts, device: torch.device) -> Maker:
    """The networks for mixtures of ``config.mixup``; copies of the decoders where they work in 16 bits."""
    vae, vocoder = parts.vae, parts.vocoder
    if config.mixup == "latent" and (dtype := sixteen_bits(config.mixed_precision, device)):
        vae, vocoder = copy.deepcopy((vae, vocoder))
        lower_decoders(vae, vocoder, dtype)
    return Maker(vae, vocoder, parts.conditioner, config.mel, device)


def make_rounds(
    config: DiffusionConfig,
    clips: list[Clip],
    collection: Collection,
    parts: Parts,
    folder: Path,
    device: torch.device,
) -> MixtureRounds | None:
    """The mixtures that ``config`` asks for, anchored in the training ``clips`` of ``collection``.

    The recordings' analysis is read from the collection, and what of it is missing is measured and added.

    Raises:
        ValueError: fresh mixtures are asked for, which the training process makes, in a run of several.
    """
    if config.mixup == "none" or config.mixup_probability == 0:
        return None
    if config.mixup_fresh and (config.workers or PartialState().num_processes > 1):
        raise ValueError(
            "mixup_fresh makes new mixtures in the one process that trains: set workers=0 and start one process, "
            "or take mixup_fresh=false with a larger mixup_per_clip"
        )
    with PartialState().main_process_first():  # which measures what is missing, for the others to read
        analysis = collection.analysis(None if config.mixup == "plain" else config.mixup_tracker)
    settings = MixupSettings(
        kind=config.mixup,
        mode=config.mixup_mode,
        seed=config.seed if config.mixup_seed is None else config.mixup_seed,
        per_clip=config.mixup_per_clip,
        max_stretch=config.mixup_stretch,
        same_key=config.mixup_same_key,
    )
    mel = config.mel
    dataset = BeatSynchronousMixup(
        clips, analysis, mel.sample_rate, mel.clip_samples, settings, channels=mel.audio_channels
    )
    key = rounds_key(config, dataset, device) + fingerprint(
        clips, config.mel, parts.vae, parts.conditioner.clap, parts.vocoder
    )
    rounds = MixtureRounds(dataset, make_maker(config, parts, device), folder, config.mixup_fresh, key)
    if not config.mixup_fresh:
        rounds.of(0)
    return rounds


def rounds_key(config: DiffusionConfig, dataset: BeatSynchronousMixup, device: torch.device) -> str:
    """A digest of what the mixtures of ``dataset`` depend on besides clips and networks."""
    settings = {name: getattr(config, name) for name in vars(config) if name.startswith("mixup")} | {
        "seed": dataset.settings.seed,
        "pairing": [recording.name + recording.group for recording in dataset.pairing.recordings],
        "beats": [float(np.sum(recording.beats_s)) for recording in dataset.pairing.recordings],
    }
    if config.mixup == "latent" and (dtype := sixteen_bits(config.mixed_precision, device)):
        settings["heard_in"] = str(dtype)
    return hashlib.sha256(repr(settings).encode()).hexdigest()
