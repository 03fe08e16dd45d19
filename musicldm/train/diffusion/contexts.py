"""Contexts of clips: made once and kept on disk, several draws of each clip, and drawn for training items.

    the clip's notes, or some of its tracks  ->  audio -> VAE -> means (C, T/f, F/f)       contexts/latents.npy, float16
                                             ->  spans in seconds -> frames (1 + K, T/f)   contexts/frames.npy
    what is wanted, if it is not the clip    ->  VAE moments (2C, T/f, F/f), text -> CLAP  contexts/moments.npy, ...

Frames say where the music itself is given and stays, and where a context of each of the K kinds is given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from musicldm.config import DiffusionConfig
from musicldm.models.context import HOLE, KINDS, ContextLayout, context_channels
from musicldm.train.diffusion.holes import NUMBERS, kept_frames

WITHOUT, WITH_HOLE, WITH_MADE = "without", "hole", "context"  # what an item may be given
FAILED, OF_CLIP, OF_ITS_OWN = range(3)  # what became of a draw: nothing, a context of the clip, one of another target


class Tables(NamedTuple):
    """Arrays over the contexts that were made, memory-mapped; ``config.context_draws`` of each clip in turn."""

    latents: np.ndarray  # (M, C, T/f, F/f): means, unscaled
    frames: np.ndarray  # (M, 1 + K, T/f): 1 where the music stays, and where each of KINDS is given
    made: np.ndarray  # (M,) FAILED, OF_CLIP or OF_ITS_OWN
    target: np.ndarray  # (M,) row of the two below, for OF_ITS_OWN
    moments: np.ndarray  # (P, 2C, T/f, F/f) of targets of their own: means, then log variances
    embedding: np.ndarray  # (P, D): of their texts


class Given(NamedTuple):
    """What an item is given."""

    how: str  # WITHOUT, WITH_HOLE or WITH_MADE
    row: int  # of the tables, for WITH_MADE
    chance: np.ndarray  # (NUMBERS,) that a hole is drawn from


@dataclass(frozen=True)
class Contexts:
    """The contexts of a collection's clips.

    Attributes:
        config: has the shares of items without one and with a hole.
        layout: the channels of the UNet, which knows all of KINDS.
        first: (N,) the first row of each clip in ``tables``; -1 of clips without notes.
        only: WITHOUT, WITH_HOLE or WITH_MADE if all items are to be so, as far as they can.
    """

    config: DiffusionConfig
    layout: ContextLayout
    first: np.ndarray
    tables: Tables
    only: str | None = None

    def draw(self, rng: np.random.Generator, clip: int) -> Given:
        """What an item of ``clip`` is given."""
        which, row, *chance = rng.random(2 + NUMBERS)
        row = int(self.first[clip] + int(row * self.config.context_draws)) if self.first[clip] >= 0 else -1
        how = WITH_HOLE if which < self.config.hole_share else WITH_MADE
        if self.only is None and which >= 1 - self.config.drop_context:
            how = WITHOUT
        how = self.only or how
        if how == WITH_MADE and (row < 0 or self.tables.made[row] == FAILED):
            how = WITHOUT
        return Given(how, row, np.array(chance))

    def target(self, given: Given) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Moments, embedding (D,) and no more embeddings (0, D) of what is wanted, if it is not the clip."""
        if given.how != WITH_MADE or self.tables.made[given.row] != OF_ITS_OWN:
            return None
        row = self.tables.target[given.row]
        embedding = self.tables.embedding[row]
        return self.tables.moments[row], embedding, embedding[None][:0]

    def channels(self, given: Given | None, mean: np.ndarray) -> Tensor:
        """The channels (C + 1 + K, T/f, F/f), unscaled, of what an item of ``mean (C, T/f, F/f)`` is given."""
        if given is None or given.how == WITHOUT:
            return torch.zeros(self.layout.channels, *mean.shape[1:])
        if given.how == WITH_HOLE:
            latents = torch.from_numpy(mean)
            kept = kept_frames(torch.from_numpy(given.chance)[:, None], mean.shape[1])
            frames = torch.zeros(len(KINDS) + 1, mean.shape[1])
            frames[0], frames[1 + KINDS.index(HOLE)] = kept[0], 1
        else:
            latents = torch.from_numpy(self.tables.latents[given.row].astype(np.float32))
            frames = torch.from_numpy(self.tables.frames[given.row].astype(np.float32))
        return channels_of(self.layout, latents[None], frames[None])[0]

    def all_given(self, how: str) -> Contexts:
        """The same for items that are all given ``how``."""
        return replace(self, only=how)


def channels_of(layout: ContextLayout, latents: Tensor, frames: Tensor) -> Tensor:
    """`context_channels` (B, C + 1 + K, T/f, F/f) of ``latents (B, C, T/f, F/f)`` and ``frames (B, 1 + K, T/f)``."""
    kept, *kinds = frames.unbind(1)
    return context_channels(layout, latents, dict(zip(KINDS, kinds, strict=True)), kept)


def span_frames(spans: list[tuple[float, float]], n_frames: int, frame_s: float, *, whole: bool) -> np.ndarray:
    """Which of ``n_frames`` frames of ``frame_s`` seconds lie in one of ``spans`` (seconds), bool (T,).

    With their whole length, or with their centre.
    """
    centre = (np.arange(n_frames) + 0.5) * frame_s
    reach = frame_s / 2 - 1e-6 if whole else 0.0
    inside = np.zeros(n_frames, dtype=bool)
    for start, end in spans:
        inside |= (centre - reach >= start) & (centre + reach < end)
    return inside
