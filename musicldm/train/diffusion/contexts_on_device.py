"""Contexts drawn for whole batches, in the memory of a device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from musicldm.models.context import HOLE, KINDS
from musicldm.train.diffusion.contexts import FAILED, OF_ITS_OWN, Contexts, channels_of
from musicldm.train.diffusion.holes import NUMBERS, kept_frames


class GivenBatch(NamedTuple):
    """What the items of a batch are given."""

    row: Tensor  # (B,) of the tables
    made: Tensor  # (B,) bool: what the tables have there
    hole: Tensor  # (B,) bool: their own music with a hole
    target: Tensor  # (B,) row of the targets of their own; -1: what is wanted is the clip
    chance: Tensor  # (NUMBERS, B) that holes are drawn from


class ContextsOnDevice:
    """`Contexts` in the memory of ``device``; targets of their own lie with the clips."""

    def __init__(self, contexts: Contexts, device: torch.device):
        tables, self.config, self.layout = contexts.tables, contexts.config, contexts.layout
        self.first = torch.from_numpy(contexts.first).to(device)
        self.latents, self.frames, self.made, self.target = (
            torch.from_numpy(array[:]).to(device)
            for array in (tables.latents, tables.frames, tables.made, tables.target)
        )

    def draw(self, clip: Tensor, mixed: Tensor, options: dict) -> GivenBatch:
        """What items of ``clip (B,)`` are given, those aside that are ``mixed (B,)``; ``options`` of `torch.rand`."""
        config = self.config
        which, place, *chance = torch.rand(2 + NUMBERS, len(clip), dtype=torch.float64, **options)
        first = self.first[clip]
        row = (first + (place * config.context_draws).long()).clamp(min=0)
        hole = (which < config.hole_share) & ~mixed
        made = (first >= 0) & (which >= config.hole_share) & (which < 1 - config.drop_context) & ~mixed
        if len(self.made):
            made = made & (self.made[row] != FAILED)
            target = torch.where(made & (self.made[row] == OF_ITS_OWN), self.target[row], -1)
        else:
            target = torch.full_like(row, -1)
        return GivenBatch(row, made, hole, target, torch.stack(chance))

    def channels(self, given: GivenBatch, mean: Tensor) -> Tensor:
        """The channels (B, C + 1 + K, T/f, F/f), unscaled, beside what is wanted, of ``mean (B, C, T/f, F/f)``."""
        n, _, n_frames, _ = mean.shape
        frames = mean.new_zeros(n, 1 + len(KINDS), n_frames)
        latents = torch.zeros_like(mean)
        if len(self.made):
            frames += given.made[:, None, None] * self.frames[given.row]
            latents += given.made[:, None, None, None] * self.latents[given.row]
        hole = given.hole[:, None]
        frames[:, 0] += hole * kept_frames(given.chance, n_frames)
        frames[:, 1 + KINDS.index(HOLE)] += hole
        latents += hole[..., None, None] * mean
        return channels_of(self.layout, latents, frames)
