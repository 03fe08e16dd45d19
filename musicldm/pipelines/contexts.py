"""Contexts of a call: from what a user gives to the channels that the UNet takes.

    Sketch, array, tensor, file, latents, kinds  ->  `read_contexts`   ->  for each prompt a `Heard`, checked, or None
    Heard, latent frames                         ->  `encode_contexts` ->  channels (P, C + 1 + K, T/f, F/f)

A context is given from the first sample of the music on. What is longer than the music is cut, and after the end of
what is shorter nothing is given. Which channels there are is in `musicldm.models.context`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from musicldm.config.values import check_number, shown
from musicldm.editing.stretching import stretch_loop
from musicldm.models.context import HOLE, NO_CONTEXT, ContextLayout, context_channels, context_layout
from musicldm.pipelines.recordings import fitted, model_waveforms
from musicldm.scores.hearing import check_audible
from musicldm.scores.sketches import Sketch
from vocoder import MelConfig

MIDI = (".mid", ".midi")
WHAT = "a Sketch, an array or tensor of audio, a file, latents (1, C, T, F), or a dictionary of these by kind"
MARGIN = 16  # latent frames beside a piece of long audio: as far as a VAE sees, but for the attention in its middle

Kinds: TypeAlias = str | Sequence[str] | None
Encode: TypeAlias = Callable[[Tensor, int], Tensor]  # as `MusicLDMBase.encode_audio`


@dataclass(frozen=True)
class ContextOptions:
    """What the music of a call is to follow; see `MusicLDMPipeline.__call__`."""

    context: Any = None
    kind: Any = None
    guidance_scale: float = 1.0
    sampling_rate: int | None = None

    def check(self, by_itself: bool = False) -> None:
        """ValueError for a scale that is none, or settings without a context; ``by_itself``: there is one anyhow."""
        check_number("context_guidance_scale", self.guidance_scale, 0)
        if self.context is not None:
            return
        names = {"context_kind": self.kind, "context_sampling_rate": self.sampling_rate}
        if self.guidance_scale != 1 and not by_itself:
            names["context_guidance_scale"] = self.guidance_scale
        for name, value in names.items():
            if value is not None:
                raise ValueError(f"{name}={shown(value)} without a context; give a context, or leave {name} out")


@dataclass(frozen=True)
class Part:
    """Something that is heard from the beginning: sound of some kinds.

    Attributes:
        kinds: of context.
        sound: at the model's rate and channels, (1, L) or (1, A, L).
        latents: (1, C, T, F) instead.
    """

    kinds: tuple[str, ...]
    sound: Tensor | None = None
    latents: Tensor | None = None

    def length(self, samples_per_frame: float) -> float:
        """In latent frames of so many samples."""
        if self.sound is not None:
            return self.sound.shape[-1] / samples_per_frame
        return 0.0 if self.latents is None else float(self.latents.shape[2])


@dataclass(frozen=True)
class Heard:
    """The context of one prompt: parts that sound together; latents are always alone."""

    parts: tuple[Part, ...]

    def n_samples(self, samples_per_frame: int) -> int:
        """Its length at the model's rate, latent frames having ``samples_per_frame``."""
        return round(max(part.length(samples_per_frame) for part in self.parts) * samples_per_frame)


def read_contexts(
    given: ContextOptions, unet: UNet2DConditionModel, mel: MelConfig, n_prompts: int
) -> list[Heard | None]:
    """What is heard beside each of ``n_prompts``, by a model of ``unet`` and ``mel``; None for nothing.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: if the model takes no context, or none of that kind; for something else, another number than 1 or
            the prompts', what is silent, empty, holds NaN or cannot be heard by the model.
    """
    layout = context_layout(unet)
    if layout is None:
        raise ValueError(NO_CONTEXT)
    contexts = one_each(given.context, n_prompts)
    heard: dict[int, Heard] = {}
    for one in contexts:
        if one is not None and id(one) not in heard:
            heard[id(one)] = _heard(one, given, layout, mel)
    return [None if one is None else heard[id(one)] for one in contexts]


def one_each(context: Any, n_prompts: int) -> list:
    """``context`` as one for each of ``n_prompts``; ValueError for another number than 1 or that."""
    if isinstance(context, Tensor) and context.ndim == 4:
        contexts = list(context.split(1))
    elif (isinstance(context, np.ndarray | Tensor) and context.ndim == 3) or isinstance(context, list | tuple):
        contexts = list(context)
    else:
        contexts = [context]
    if len(contexts) == 1:
        contexts = contexts * n_prompts
    if len(contexts) != n_prompts:
        raise ValueError(
            f"there are {len(contexts)} contexts for {n_prompts} prompts; give one for all, or one for each "
            "(what sounds together is a dictionary by kind)"
        )
    return contexts


def _heard(context: Any, given: ContextOptions, layout: ContextLayout, mel: MelConfig) -> Heard:
    """One prompt's ``context``."""
    if not isinstance(context, Mapping):
        return Heard((_part(context, given.kind, given, layout, mel),))
    if given.kind is not None:
        raise ValueError("context is a dictionary by kind, so leave context_kind out")
    if not context:
        raise ValueError("context is an empty dictionary; give something, or leave context out")
    parts = tuple(_part(value, kind, given, layout, mel) for kind, value in context.items())
    if len(parts) > 1 and any(part.sound is None for part in parts):
        raise ValueError("latents cannot be mixed with other contexts; give their audio instead")
    return Heard(parts)


def _part(value: Any, kind: Kinds, given: ContextOptions, layout: ContextLayout, mel: MelConfig) -> Part:
    """``value`` as a model hears it."""
    if isinstance(value, str | os.PathLike) and os.fspath(value).lower().endswith(MIDI):
        value = Sketch.from_midi(os.fspath(value))
    if isinstance(value, Sketch):
        kinds = _kinds(value.kinds if kind is None else kind, layout)
        check_audible(value, mel)
        return Part(kinds, torch.from_numpy(value.render(mel.sample_rate, mel.audio_channels))[None])
    if not isinstance(value, str | os.PathLike | np.ndarray | Tensor):
        raise ValueError(f"context must be {WHAT}, or a list of one for each prompt, got {shown(value)}")
    kinds = _kinds(kind, layout)
    if isinstance(value, Tensor) and value.ndim == 4:
        return Part(kinds, latents=_checked(value, layout))
    is_array = isinstance(value, np.ndarray | Tensor)
    if is_array and given.sampling_rate is None:
        raise ValueError("a context of audio in an array needs its context_sampling_rate, in Hz")
    try:
        return Part(kinds, model_waveforms(value, given.sampling_rate if is_array else None, mel))
    except ValueError as error:
        raise ValueError(f"context: {error}") from error


def _kinds(kind: Kinds, layout: ContextLayout) -> tuple[str, ...]:
    """``kind``, one or several, as names that the model knows, without ``hole``."""
    if kind is None:
        raise ValueError(f"context_kind must say what the context is, one or several of {_choices(layout)}")
    kinds = (kind,) if isinstance(kind, str) else tuple(kind) if isinstance(kind, list | tuple | set) else (None,)
    if not kinds or not all(isinstance(one, str) for one in kinds):
        raise ValueError(f"context_kind must be one or several of {_choices(layout)}, got {shown(kind)}")
    if HOLE in kinds:
        raise ValueError(
            f"a context of kind {HOLE} is music with a part missing: MusicLDMInpaintPipeline makes it by itself of the "
            f"recording; others are {_choices(layout)}"
        )
    layout.check(kinds)
    return tuple(dict.fromkeys(kinds))


def _choices(layout: ContextLayout) -> str:
    return ", ".join(kind for kind in layout.kinds if kind != HOLE) or "nothing (the model knows no other kind)"


def _checked(latents: Tensor, layout: ContextLayout) -> Tensor:
    """``latents`` (1, C, T, F) of a context; ValueError for others."""
    what = f"a tensor (1, {layout.latents}, T, F) of floating point"
    is_one = latents.shape[:2] == (1, layout.latents) and latents.numel() > 0
    if not latents.is_floating_point() or not is_one:
        raise ValueError(f"context latents must be {what}, got shape {tuple(latents.shape)} of {latents.dtype}")
    if not torch.isfinite(latents).all():
        raise ValueError("context latents hold NaN or infinity; look at where they were computed")
    if not latents.any():
        raise ValueError("context latents are all zero, which is no context; leave it out")
    return latents.detach()


def common_seconds(heard: Sequence[Heard | None], mel: MelConfig, factor: int) -> float:
    """How long the contexts of a call last; ValueError if they differ, which a batch cannot."""
    lengths = {one.n_samples(factor * mel.hop_length) for one in heard if one is not None}
    if not lengths:
        raise ValueError("all contexts are None; leave context out, or give audio_length_in_s")
    if len(lengths) > 1:
        seconds = " and ".join(f"{n / mel.sample_rate:g}" for n in sorted(lengths))
        raise ValueError(f"the contexts of one call last {seconds} s; give audio_length_in_s, or make a call for each")
    return lengths.pop() / mel.sample_rate


@dataclass(frozen=True)
class Place:
    """The music that a context is for.

    Attributes:
        shape: of its latents, (B, C, T, F).
        n_samples: of its waveform; on a circle those are stretched to whole latent frames.
        loop: whether it is a circle.
        at_once: latent frames that are encoded at once, those that the model was trained on.
        samples_per_frame: of latents.
        rate: Hz.
    """

    shape: tuple[int, ...]
    n_samples: int
    loop: bool
    at_once: int
    samples_per_frame: int
    rate: int


def encode_contexts(
    heard: Sequence[Heard | None], layout: ContextLayout, place: Place, encode: Encode, like: Tensor
) -> Tensor:
    """Channels (P, C + 1 + K, T, F) of what is ``heard`` beside each of P prompts; dtype and device of ``like``.

    ``encode`` makes scaled latents (1, C, T, F) of (waveform, rate).

    Raises:
        ValueError: for latents whose rows are not those of the model.
    """
    made: dict[int, Tensor] = {id(None): like.new_zeros(1, layout.channels, *place.shape[2:])}
    for one in heard:
        if one is not None and id(one) not in made:
            made[id(one)] = _channels(one, layout, place, encode, like)
    return torch.cat([made[id(one)] for one in heard])


def _channels(heard: Heard, layout: ContextLayout, place: Place, encode: Encode, like: Tensor) -> Tensor:
    n_frames, n_rows = place.shape[2:]
    first = heard.parts[0]
    if first.latents is None:
        latents = encode_sound(_mixed(heard, place), place, encode)
    elif first.latents.shape[3] != n_rows:
        raise ValueError(f"context latents must have {n_rows} rows as the model's, got {first.latents.shape[3]}")
    else:
        latents = fitted(first.latents.movedim(2, 3), n_frames).movedim(3, 2)
    frames = torch.zeros(len(layout.kinds), n_frames, device=like.device)
    samples_per_frame = place.n_samples / n_frames if place.loop else place.samples_per_frame
    for part in heard.parts:
        n_given = max(1, round(part.length(samples_per_frame)))  # whose centre is heard
        for kind in part.kinds:
            frames[layout.kinds.index(kind), :n_given] = 1
    return context_channels(layout, latents.to(like), dict(zip(layout.kinds, frames, strict=True)))


def _mixed(heard: Heard, place: Place) -> Tensor:
    """All parts' sound (1, L) or (1, A, L), L being whole latent frames; on a circle stretched as the music will be."""
    n_samples = place.shape[2] * place.samples_per_frame
    length = place.n_samples if place.loop else n_samples
    sound = torch.stack([fitted(part.sound, length) for part in heard.parts if part.sound is not None]).sum(dim=0)
    if length != n_samples:
        sound = torch.from_numpy(stretch_loop(sound[0].numpy(), place.rate, n_samples))[None]
    return sound


def encode_sound(sound: Tensor, place: Place, encode: Encode) -> Tensor:
    """Latents (1, C, T, F) of ``sound`` (1, L) or (1, A, L), of T whole latent frames.

    Sound longer than what the model was trained on is encoded in pieces with margins, so that memory is bounded; on a
    circle its end is heard before its start.
    """
    size, n_frames = place.samples_per_frame, sound.shape[-1] // place.samples_per_frame
    before = 0
    if place.loop:
        before = min(MARGIN, n_frames)
        around = torch.arange(-before * size, (n_frames + before) * size) % (n_frames * size)
        sound = sound[..., around]
    total = n_frames + 2 * before
    longest = place.at_once + 2 * before
    margin = min(MARGIN, longest // 4)
    step = total if total <= longest else longest - 2 * margin
    pieces = []
    for start in range(0, total, step):
        first, last = max(0, start - margin), min(total, start + step + margin)
        latents = encode(sound[..., first * size : last * size], place.rate)
        pieces.append(latents[:, :, start - first : start - first + step])
    return torch.cat(pieces, dim=2)[:, :, before : before + n_frames]
