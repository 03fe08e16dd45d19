"""Clips of recordings, and their audio.

Clip(path, start_s, texts, ...), offset -> waveform (L,), or (2, L) for models of stereo
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soxr

from musicldm.audio.files import with_channels
from musicldm.data.items import Item, item_rng
from musicldm.data.shards import opened_recording

if TYPE_CHECKING:
    from torch import Tensor


class Clip(NamedTuple):
    """A part of one recording."""

    path: Path
    start_s: float
    duration_s: float  # of the recording from start_s on, at most one clip
    texts: tuple[str, ...]
    split: str  # "train", "validation" or "test"


def cut_clips(path: Path, duration_s: float, clip_s: float, texts: tuple[str, ...], split: str) -> list[Clip]:
    """Consecutive clips of ``clip_s`` seconds of a recording, at least one; a last half clip or more is kept."""
    n = max(1, math.floor(duration_s / clip_s + 0.5))
    return [Clip(path, k * clip_s, min(clip_s, duration_s - k * clip_s), texts, split) for k in range(n)]


def read_clip(clip: Clip, sample_rate: int, n_samples: int, offset_s: float = 0.0, channels: int = 1) -> np.ndarray:
    """Waveform ``(n_samples,)``, or with 2 ``channels`` (2, n_samples), from ``offset_s`` in ``clip``, zero-padded."""
    with opened_recording(clip.path) as audio:
        rate = audio.rate
        frames = audio.read(round((clip.start_s + offset_s) * rate), math.ceil(n_samples * rate / sample_rate) + 1)
    waveform = with_channels(frames, channels, clip.path)
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate)
    return fitted(np.ascontiguousarray(waveform.T), n_samples)


def fitted(waveform: np.ndarray, n_samples: int) -> np.ndarray:
    """``waveform (..., L)`` cut, or padded with zeros, to ``n_samples``."""
    waveform = waveform[..., :n_samples]
    return np.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(0, n_samples - waveform.shape[-1])])


class SegmentDataset:
    """Segments of waveforms: ``dataset[Item(epoch, index)]`` cuts one at random from a clip, as `read_clip` does.

    For torch's ``DataLoader``. It imports no torch, because preparing a collection uses this module too.
    """

    def __init__(
        self,
        clips: list[Clip],
        sample_rate: int,
        n_samples: int,
        seed: int,
        random_start: bool = True,
        channels: int = 1,
    ):
        self.clips, self.sample_rate, self.n_samples, self.channels = clips, sample_rate, n_samples, channels
        self.seed, self.random_start = seed, random_start

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: Item) -> Tensor:
        import torch

        clip = self.clips[item.index]
        spare_s = max(0.0, clip.duration_s - self.n_samples / self.sample_rate)
        offset_s = item_rng(self.seed, item, "start").uniform(0, spare_s) if self.random_start else 0.0
        return torch.from_numpy(read_clip(clip, self.sample_rate, self.n_samples, offset_s, self.channels))
