"""Music with a hole as its own context: which of its latent frames stay.

Drawn alike item by item and for whole batches on a device, from numbers that come from outside.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUMBERS = 5  # that one hole is drawn from
SHORTEST = 0.08  # hole, of the length of a clip
LONGEST = 0.6  # hole inside a clip; one at its end leaves a tenth
BORDER = 2  # frames at most that are left out beside a hole, as the edge of what a user gives is seldom that of a frame


def kept_frames(chance: Tensor, n_frames: int) -> Tensor:
    """Which of ``n_frames`` latent frames stay, bool (B, n_frames), by uniform numbers ``chance (NUMBERS, B)``.

    The hole is at the end, at the beginning, inside or at both ends, each in a quarter of the draws.
    """
    place, length, position, before, after = chance
    inside, outer = (place >= 0.5) & (place < 0.75), place >= 0.75
    longest = torch.where(inside | outer, LONGEST, 0.9)
    length = SHORTEST + (longest - SHORTEST) * length  # of the hole, or of what stays between two
    first = torch.where(place < 0.25, 1 - length, torch.where(place < 0.5, 0, (1 - length) * position))
    grown = torch.where(outer, -1.0, 1.0)  # frames that are left out make holes longer, and what is between shorter
    start = n_frames * first - grown * ((BORDER + 1) * before).floor()  # (B,)
    end = n_frames * (first + length) + grown * ((BORDER + 1) * after).floor()
    centre = torch.arange(n_frames, device=chance.device) + 0.5
    between = (centre >= start[:, None]) & (centre < end[:, None])  # (B, n_frames)
    return torch.where(outer[:, None], between, ~between)
