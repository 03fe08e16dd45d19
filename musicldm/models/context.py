"""The context of a UNet: sound that is given beside the text, as input channels beside the noisy latents.

    noisy (B, C, T, F) | context latents (B, C, T, F) | mask (B, 1, T, F) | kinds (B, K, T, F)  -> conv_in of the UNet

The context is audio, encoded by the same VAE. A kind's channel is 1 on the latent frames in which a context of that
kind is given, the mask on those in which the music itself is given and stays. Context latents are 0 where nothing is
given, and without a context all C + 1 + K channels are. Which channels a UNet has is said by its configuration:
``in_channels``, and an entry ``context`` such as ``{"latents": 16, "mask": 1, "kinds": ["notes", "chords"]}``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from musicldm.config.values import shown
from musicldm.scores.sketches import SKETCH_KINDS

KINDS = (*SKETCH_KINDS, "along", "hole")
HOLE = "hole"  # the music itself, of which parts are missing

ENTRY = "context"  # of the UNet's configuration
NO_CONTEXT = (
    "the model takes no context (its UNet has no channels for one); leave the context out, or take a model that was "
    "trained with contexts"
)


@dataclass(frozen=True)
class ContextLayout:
    """The channels of a context.

    Attributes:
        latents: of the context's latents, C, as many as of the noisy ones.
        kinds: of context, one channel each.

    Raises:
        ValueError: for a number or names that are none.
    """

    latents: int
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self):
        if not isinstance(self.latents, int) or isinstance(self.latents, bool) or self.latents < 1:
            raise ValueError(f"a context must have 1 latent channel or more, got {shown(self.latents)}")
        named = bool(self.kinds) and all(isinstance(kind, str) and kind for kind in self.kinds)
        if not named or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds of context must be different names, one at least, got {shown(self.kinds)}")

    @property
    def channels(self) -> int:
        """Of a context: its latents, the mask and the kinds."""
        return self.latents + 1 + len(self.kinds)

    def check(self, kinds: tuple[str, ...]) -> None:
        """ValueError for kinds that the model does not know, with those that it knows."""
        if unknown := [kind for kind in kinds if kind not in self.kinds]:
            raise ValueError(
                f"the model knows no context of kind {shown(unknown[0])}; it knows {', '.join(self.kinds)}"
            )


def context_layout(unet: nn.Module) -> ContextLayout | None:
    """The channels of the context that ``unet`` takes; None if it takes none.

    Raises:
        ValueError: if its configuration contradicts itself.
    """
    entry = unet.config.get(ENTRY)
    if entry is None:
        return None
    if not isinstance(entry, Mapping) or entry.keys() != {"latents", "mask", "kinds"} or entry["mask"] != 1:
        raise ValueError(f"the UNet's context must name latents, mask (1) and kinds, got {shown(entry)}")
    if not isinstance(entry["kinds"], list | tuple):
        raise ValueError(f"kinds of the UNet's context must be a list of names, got {shown(entry['kinds'])}")
    layout = ContextLayout(entry["latents"], tuple(entry["kinds"]))
    if unet.config.in_channels != (expected := layout.latents + layout.channels):
        raise ValueError(
            f"the UNet's context needs in_channels of {expected} ({layout.latents} noisy latents, as many of the "
            f"context, a mask and {len(layout.kinds)} kinds), its configuration has {unet.config.in_channels}"
        )
    return layout


def latent_channels(unet: nn.Module) -> int:
    """Channels of the latents that ``unet`` denoises, C: its input channels without those of a context."""
    layout = context_layout(unet)
    return unet.config.in_channels if layout is None else layout.latents


@torch.no_grad()
def add_context(unet: UNet2DConditionModel, kinds: tuple[str, ...] | list[str] = KINDS) -> ContextLayout:
    """Give ``unet`` input channels for a context, in place: new columns of ``conv_in``, all zero.

    So it predicts what it did, whatever the context is, until these columns are trained.

    Raises:
        ValueError: if it takes a context already, has adapters on its first layer, or for kinds that are none.
    """
    if context_layout(unet) is not None:
        raise ValueError("the UNet takes a context already")
    old, layout = unet.conv_in, ContextLayout(unet.config.in_channels, tuple(kinds))
    if type(old) is not nn.Conv2d:
        raise ValueError(f"conv_in of the UNet must be a plain Conv2d, got {type(old).__name__}; unload its adapters")
    new = nn.Conv2d(
        layout.latents + layout.channels,
        old.out_channels,
        old.kernel_size,
        padding=old.padding,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    new.weight.zero_()
    new.weight[:, : layout.latents] = old.weight
    new.bias.copy_(old.bias)
    unet.conv_in = new.train(old.training).requires_grad_(old.weight.requires_grad)
    entry = {"latents": layout.latents, "mask": 1, "kinds": list(layout.kinds)}
    unet.register_to_config(in_channels=layout.latents + layout.channels, **{ENTRY: entry})
    return layout


def context_channels(
    layout: ContextLayout, latents: Tensor, frames: Mapping[str, Tensor], kept: Tensor | None = None
) -> Tensor:
    """The channels (B, C + 1 + K, T, F) of a context.

    Args:
        layout: of the UNet.
        latents: of the context (B, C, T, F), scaled as the clean latents that the UNet knows.
        frames: for each kind of context that is given, the latent frames in which it is: (T,), or (B, T) of each item;
            1 where it is given. Where ``hole`` has a 1 anywhere in an item it counts for all of its frames.
        kept: latent frames (T,) or (B, T) of the music itself that stay, 1 for these: the context is then of kind
            ``hole`` in all items that keep something. None: no music is given.

    Raises:
        ValueError: for a kind that the UNet does not know, or tensors of other shapes.
    """
    if latents.ndim != 4 or latents.shape[1] != layout.latents:
        raise ValueError(f"context latents must be (B, {layout.latents}, T, F), got shape {tuple(latents.shape)}")
    layout.check((*frames, *(() if kept is None else (HOLE,))))
    n_items, _, n_frames, _ = latents.shape
    kinds = latents.new_zeros(n_items, len(layout.kinds), n_frames)
    for kind, where in frames.items():
        kinds[:, layout.kinds.index(kind)] = _of_items(kind, where, latents)
    mask = latents.new_zeros(n_items, n_frames) if kept is None else _of_items("kept", kept, latents)
    sounds = [i for i, kind in enumerate(layout.kinds) if kind != HOLE]
    given = torch.maximum(mask, kinds[:, sounds].amax(dim=1)) if sounds else mask
    if HOLE in layout.kinds:
        hole = kinds[:, layout.kinds.index(HOLE)]  # (B, T)
        hole[:] = torch.maximum(hole, mask).amax(dim=1, keepdim=True)
    flags = torch.cat([mask[:, None], kinds], dim=1)[..., None].expand(-1, -1, -1, latents.shape[3])
    return torch.cat([latents * (given[:, None, :, None] > 0), flags], dim=1)


def _of_items(name: str, where: Tensor, latents: Tensor) -> Tensor:
    """``where`` (T,) or (B, T) as (B, T) numbers of the kind of ``latents``."""
    n_items, n_frames = len(latents), latents.shape[2]
    if tuple(where.shape) not in ((n_frames,), (n_items, n_frames)):
        raise ValueError(f"{name} must be ({n_frames},) or ({n_items}, {n_frames}), got {tuple(where.shape)}")
    return where.to(latents).expand(n_items, n_frames)


class _Expected(logging.Filter):
    """Lets all pass but diffusers' warning of a configuration with an entry of context and no other unknown one."""

    def filter(self, record: logging.LogRecord) -> bool:
        return re.match(rf"The config attributes {{'{ENTRY}': {{[^{{}}]*}}}} were passed", record.getMessage()) is None


@contextmanager
def expecting_context() -> Iterator[None]:
    """Inside, diffusers reads and writes UNets with a context without a warning of the entry that it does not know."""
    logger, known = logging.getLogger("diffusers.configuration_utils"), _Expected()
    logger.addFilter(known)
    try:
        yield
    finally:
        logger.removeFilter(known)
