"""A folder of recordings with captions, as training clips in an order fixed by the seed.

    FOLDER/metadata.jsonl  ->  Clip(path, start_s, texts, ...)  ->  waveforms (B, L)

The folder follows the audio-folder convention: one JSON object a line with ``file_name`` and, if there is a caption,
``text`` (and ``texts``: further captions of the same recording). Without metadata every audio file below it is used.
A folder that `musicldm prepare` made, with shards and an index, is read in the same way.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from musicldm.data.shards import INDEX_FILE, index_rows, open_recording

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
VALIDATION_SHARE = 0.05


class Clip(NamedTuple):
    """A stretch of one recording."""

    path: Path
    start_s: float
    duration_s: float  # of the recording from start_s on, at most one clip
    texts: tuple[str, ...]
    split: str  # "train" or "validation"


class Item(NamedTuple):
    """One draw: which clip, and what seeds everything random about it."""

    epoch: int
    index: int


def load_clips(folder: str | Path, clip_s: float) -> list[Clip]:
    """Every clip of the collection: recordings cut into consecutive clips of ``clip_s``, a last piece kept from half.

    A recording shorter than a clip is one clip. The split is that of the metadata, else drawn from a hash of
    ``piece_id`` or the file's name, so that it never changes and never cuts a recording in two.

    Raises:
        FileNotFoundError: no folder, or no recordings in it.
        ValueError: a line of metadata that is not JSON, or without ``file_name``.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no data folder at {folder}")
    clips = []
    for row in index_rows(folder, ["texts", "split", "duration_s"]) if (folder / INDEX_FILE).is_file() else ():
        clips += _cut(row["path"], row["duration_s"], clip_s, tuple(row["texts"]), row["split"])
    if clips:
        return clips
    for row in metadata_rows(folder):
        path = folder / row["file_name"]
        if not path.is_file():
            raise FileNotFoundError(f"{folder / 'metadata.jsonl'} names {row['file_name']!r}, which is not there")
        texts = tuple(dict.fromkeys(text for text in [row.get("text"), *row.get("texts", [])] if text))
        split = row.get("split") or split_of(str(row.get("piece_id") or row["file_name"]))
        clips += _cut(path, soundfile.info(path).duration, clip_s, texts, split)
    if not clips:
        raise FileNotFoundError(f"no recordings in {folder} ({', '.join(SUFFIXES)})")
    return clips


def _cut(path: Path, duration_s: float, clip_s: float, texts: tuple[str, ...], split: str) -> list[Clip]:
    n = max(1, math.floor(duration_s / clip_s + 0.5))
    return [Clip(path, k * clip_s, min(clip_s, duration_s - k * clip_s), texts, split) for k in range(n)]


def metadata_rows(folder: Path) -> Iterator[dict]:
    """The rows of ``metadata.jsonl``, or one with the ``file_name`` of each audio file."""
    metadata = folder / "metadata.jsonl"
    if not metadata.is_file():
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
            yield {"file_name": str(path.relative_to(folder))}
        return
    for number, line in enumerate(metadata.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{metadata}, line {number}, is not JSON: {error}") from error
        if not isinstance(row, dict) or "file_name" not in row:
            raise ValueError(f"{metadata}, line {number}, has no file_name")
        yield row


def split_of(key: str) -> str:
    """``train`` or ``validation``, drawn from a hash of ``key``."""
    fraction = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    return "validation" if fraction < VALIDATION_SHARE else "train"


def split_clips(clips: list[Clip]) -> tuple[list[Clip], list[Clip]]:
    """``(training, validation)``; a collection too small for a validation share validates on its last recording.

    Raises:
        ValueError: fewer than two recordings, so nothing can be held out.
    """
    train = [clip for clip in clips if clip.split != "validation"]
    validation = [clip for clip in clips if clip.split == "validation"]
    if train and validation:
        return train, validation
    last = clips[-1].path
    if all(clip.path == last for clip in clips):
        raise ValueError(f"training needs two recordings or more, to hold one out; found only {last.name}")
    return [clip for clip in clips if clip.path != last], [clip for clip in clips if clip.path == last]


def item_rng(seed: int, item: Item, purpose: str) -> np.random.Generator:
    """The random generator of one item: the same whatever was drawn before, in whichever process."""
    digest = hashlib.sha256(f"{seed}/{item.epoch}/{item.index}/{purpose}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint64))


def batch_items(n_clips: int, batch_size: int, seed: int, step: int) -> list[Item]:
    """The items of one step: epochs are permutations one after another, cut into batches."""
    first = step * batch_size
    items = []
    for position in range(first, first + batch_size):
        epoch, place = divmod(position, n_clips)
        items.append(Item(epoch, int(_permutation(n_clips, seed, epoch)[place])))
    return items


_PERMUTATIONS: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(n_clips: int, seed: int, epoch: int) -> np.ndarray:
    key = (n_clips, seed, epoch)
    if key not in _PERMUTATIONS:
        if len(_PERMUTATIONS) > 8:
            _PERMUTATIONS.clear()
        _PERMUTATIONS[key] = np.random.default_rng([seed, epoch]).permutation(n_clips)
    return _PERMUTATIONS[key]


def read_clip(clip: Clip, sample_rate: int, n_samples: int, offset_s: float = 0.0) -> np.ndarray:
    """Waveform ``(n_samples,)`` from ``offset_s`` into ``clip``, zeros after its end."""
    with open_recording(clip.path) as file, soundfile.SoundFile(file) as sound:
        rate = sound.samplerate
        sound.seek(min(round((clip.start_s + offset_s) * rate), sound.frames))
        frames = sound.read(math.ceil(n_samples * rate / sample_rate) + 1, dtype="float32", always_2d=True)
    waveform = frames.mean(axis=1)  # mono
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate)
    return np.pad(waveform[:n_samples], (0, max(0, n_samples - len(waveform))))


class SegmentDataset(torch.utils.data.Dataset):
    """Waveform segments ``(n_samples,)``: ``dataset[Item(epoch, index)]`` cuts one at random from the clip."""

    def __init__(self, clips: list[Clip], sample_rate: int, n_samples: int, seed: int, random_start: bool = True):
        self.clips, self.sample_rate, self.n_samples = clips, sample_rate, n_samples
        self.seed, self.random_start = seed, random_start

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: Item) -> Tensor:
        clip = self.clips[item.index]
        spare_s = max(0.0, clip.duration_s - self.n_samples / self.sample_rate)
        offset_s = item_rng(self.seed, item, "start").uniform(0, spare_s) if self.random_start else 0.0
        return torch.from_numpy(read_clip(clip, self.sample_rate, self.n_samples, offset_s))
