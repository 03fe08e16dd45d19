"""Contexts of all clips that have notes, made once and kept on disk, several draws of each clip.

MIDI file of a clip -> draw_context -> audio, spans in seconds, perhaps a target of its own -> VAE, CLAP -> Tables
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL

from musicldm.config import DiffusionConfig
from musicldm.data.clips import Clip, fitted, read_clip
from musicldm.data.collection import Collection
from musicldm.data.items import Item, item_rng
from musicldm.models.clap import embed_text
from musicldm.models.context import KINDS, ContextLayout
from musicldm.models.latents import encode_image, latent_factor, latent_shape
from musicldm.scores.contexts import ClipSource, ContextPlan, DrawnContext, draw_context, plan_context
from musicldm.train.diffusion.cache import KeptArrays, Parts, clip_images, fingerprint
from musicldm.train.diffusion.contexts import FAILED, OF_CLIP, OF_ITS_OWN, Contexts, Tables, span_frames
from musicldm.train.diffusion.mixtures import sixteen_bits
from vocoder import MelConfig

MIDI_SUFFIXES = (".mid", ".midi")


class Draw(NamedTuple):
    """One context that is to be made."""

    source: ClipSource
    item: Item  # which draw of which clip
    plan: ContextPlan
    target: int  # row of its target among those of their own; -1: what is wanted is the clip


def clip_sources(clips: list[Clip], collection: Collection, config: DiffusionConfig) -> dict[int, ClipSource]:
    """What contexts of clips are made from, by the clips' numbers, of those that have notes.

    The MIDI file is the one that the metadata names (``midi``), else one beside the recording that is called alike.

    Raises:
        FileNotFoundError: the metadata names a MIDI file that is not there.
        ValueError: no clip has notes, and holes are not asked for either.
    """
    mel, fonts = config.mel, tuple(map(Path, config.soundfonts))
    rows = {row["path"]: row for row in collection.rows}
    files = {path: midi_of(row, collection) for path, row in rows.items()}
    sources = {
        i: ClipSource(
            midi,
            min(clip.duration_s, mel.clip_s),
            partial(read_clip, clip, mel.sample_rate, mel.clip_samples, channels=mel.audio_channels),
            clip.start_s,
            rows[clip.path].get("render"),
            fonts,
        )
        for i, clip in enumerate(clips)
        if (midi := files[clip.path])
    }
    if not sources:
        _say_that_there_are_no_notes(collection, config)
    return sources


def midi_of(row: dict, collection: Collection) -> Path | None:
    """The MIDI file of a row's recording, if there is one; FileNotFoundError if one is named that is not there."""
    if named := row.get("midi"):
        if not (midi := collection.folder / str(named)).is_file():
            raise FileNotFoundError(f"the metadata in {collection.folder} names {named!r}, which is not there")
        return midi
    beside = (row["path"].with_suffix(suffix) for suffix in MIDI_SUFFIXES)
    return next((path for path in beside if path.is_file()), None)


def _say_that_there_are_no_notes(collection: Collection, config: DiffusionConfig) -> None:
    said = (
        f"no recording of {collection.folder} has a MIDI file (named by `midi` in the metadata, or beside it under the "
        "same name), from which contexts are made: render with `musicldm render --contexts`"
    )
    if not config.hole_share:
        raise ValueError(f"{said}, or set hole_share above 0 to train with holes alone")
    if PartialState().is_main_process:
        warnings.warn(f"{said}; this run trains with holes alone", stacklevel=3)


@dataclass(frozen=True)
class ContextMaker:
    """What makes the contexts of a run.

    Attributes:
        sources: what they are made from, by the numbers of clips that have notes.
        clips: of the collection.
        parts: VAE and CLAP among them.
        config: the number of draws, the seed, spectrograms and precision.
        layout: the channels of the UNet, which knows all of KINDS.
    """

    sources: dict[int, ClipSource]
    clips: list[Clip]
    parts: Parts
    config: DiffusionConfig
    layout: ContextLayout

    def fill(self, folder: Path, device: torch.device) -> Contexts:
        """All contexts, made in ``folder`` by all processes of a machine, continuing where an interrupted run stopped.

        Raises:
            FileNotFoundError: there is no SoundFont that a clip was rendered with.
            ValueError: a MIDI file that cannot be read.
        """
        first = np.full(len(self.clips), -1)
        first[list(self.sources)] = self.config.context_draws * np.arange(len(self.sources))
        return Contexts(self.config, self.layout, first, self._tables(folder, device))

    def plan(self) -> list[Draw]:
        """All draws, those of each clip in turn."""
        draws, n_targets = [], 0
        for clip, source in self.sources.items():
            for k in range(self.config.context_draws):
                item = Item(k, clip)
                plan = plan_context(item_rng(self.config.seed, item, "context plan"))
                draws.append(Draw(source, item, plan, n_targets if plan.own_target else -1))
                n_targets += plan.own_target
        return draws

    @torch.no_grad()
    def _tables(self, folder: Path, device: torch.device) -> Tables:
        vae, conditioner, mel = self.parts.vae, self.parts.conditioner, self.config.mel
        channels, *size = latent_shape(vae, mel, mel.clip_frames)
        draws = self.plan()
        target = np.array([draw.target for draw in draws], dtype=np.int64)
        n, n_targets = len(draws), int(target.max(initial=-1)) + 1
        shapes = {
            "latents": ((n, channels, *size), np.float16),
            "frames": ((n, 1 + len(KINDS), size[0]), np.uint8),
            "made": ((n,), np.uint8),
            "moments": ((n_targets, 2 * channels, *size), np.float16),
            "embedding": ((n_targets, conditioner.clap.config.projection_dim), np.float32),
        }
        if not n:
            return Tables(target=target, **{name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()})
        # On a CPU encoding takes longest; bfloat16 errs by a twentieth of the spread that the VAE leaves open.
        low = sixteen_bits(self.config.mixed_precision, device) if device.type == "cpu" else None
        kept = KeptArrays(folder, self._key(draws, low), n, shapes)
        arrays = kept.arrays
        vae.to(device, memory_format=torch.channels_last).eval()
        conditioner.clap.to(device).eval()
        for begin, end in kept.batches("contexts", "context"):
            drawn = {row: made for row in range(begin, end) if (made := made_of(draws[row], self.config)).spans}
            arrays["made"][begin:end] = FAILED
            if rows := list(drawn):
                moments = _moments([made.audio for made in drawn.values()], vae, mel, low)
                arrays["latents"][rows] = moments[:, :channels]
                arrays["frames"][rows] = [frames_of(made, vae, mel) for made in drawn.values()]
                arrays["made"][rows] = [OF_CLIP if made.target is None else OF_ITS_OWN for made in drawn.values()]
            if own := {int(target[row]): made for row, made in drawn.items() if made.target is not None}:
                texts = embed_text(conditioner.clap, conditioner.tokenizer, [made.text for made in own.values()])
                arrays["moments"][list(own)] = _moments([made.target for made in own.values()], vae, mel, low)
                arrays["embedding"][list(own)] = texts.cpu().numpy()
        return Tables(target=target, **arrays)

    def _key(self, draws: list[Draw], low: torch.dtype | None) -> str:
        """A digest of what the contexts depend on: clips, notes, plans, seed, precision, front end and networks."""
        digest = hashlib.sha256(repr((self.config.seed, self.config.context_draws, KINDS, str(low))).encode())
        notes = {source.midi: hashlib.sha256(source.midi.read_bytes()).hexdigest() for source in self.sources.values()}
        for draw in draws:
            source = draw.source
            about = [*draw.item, draw.plan, notes[source.midi], source.offset_s, source.seconds, source.render]
            digest.update(json.dumps(about, sort_keys=True).encode())
        used = [self.clips[index]._replace(texts=()) for index in self.sources]
        return digest.hexdigest() + fingerprint(used, self.config.mel, self.parts.vae, self.parts.conditioner.clap)


def made_of(draw: Draw, config: DiffusionConfig) -> DrawnContext:
    """The context of ``draw``; without spans if the clip has nothing to give."""
    rng = item_rng(config.seed, draw.item, "context made")
    return draw_context(draw.plan, draw.source, rng, config.mel.sample_rate, config.mel.audio_channels)


def frames_of(drawn: DrawnContext, vae: AutoencoderKL, mel: MelConfig) -> np.ndarray:
    """Frames (1 + K, T/f): those that wholly stay, and those whose centre lies in the spans of each kind."""
    factor = latent_factor(vae)
    n_frames, frame_s = mel.clip_frames // factor, factor * mel.hop_length / mel.sample_rate
    kinds = [span_frames(drawn.spans.get(kind, ()), n_frames, frame_s, whole=False) for kind in KINDS]
    return np.stack([span_frames(drawn.kept, n_frames, frame_s, whole=True), *kinds])


def _moments(waveforms: list[np.ndarray], vae: AutoencoderKL, mel: MelConfig, low: torch.dtype | None) -> np.ndarray:
    """Moments (B, 2C, T/f, F/f) of ``waveforms`` (L,) or (A, L), computed in ``low`` precision or in float32."""
    stacked = np.stack([fitted(waveform, mel.clip_samples) for waveform in waveforms])
    images = clip_images(torch.from_numpy(stacked).float().to(vae.device), vae, mel)
    with torch.autocast(vae.device.type, low, enabled=low is not None):
        return encode_image(vae, images).parameters.float().cpu().numpy()
