"""Order of training clips, and seeds of everything random about them."""

from __future__ import annotations

import functools
import hashlib
from typing import NamedTuple

import numpy as np


class Item(NamedTuple):
    """One training item: index of the clip, and epoch, which seed everything random about it."""

    epoch: int
    index: int


def item_rng(seed: int, item: Item, purpose: str) -> np.random.Generator:
    """The random generator of one item for one purpose; independent of other draws and of the process."""
    digest = hashlib.sha256(f"{seed}/{item.epoch}/{item.index}/{purpose}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint64))


def batch_items(n_clips: int, batch_size: int, seed: int, step: int) -> list[Item]:
    """The items of one step. Epochs are consecutive permutations of all clips, cut into batches."""
    first = step * batch_size
    items = []
    for position in range(first, first + batch_size):
        epoch, place = divmod(position, n_clips)
        items.append(Item(epoch, int(_permutation(n_clips, seed, epoch)[place])))
    return items


@functools.lru_cache(maxsize=8)
def _permutation(n_clips: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_clips)
