"""A folder of recordings with captions, as training clips in an order fixed by the seed.

    FOLDER/metadata.jsonl or metadata.csv  ->  Clip(path, start_s, texts, ...)  ->  waveforms (B, L)

The folder follows the audio-folder convention: one JSON object a line, or one row of a table, with ``file_name`` and,
if there is a caption, ``text`` (and ``texts``: further captions of the same recording). Without metadata every audio
file below it is used.
A folder that `musicldm prepare` made, with shards and an index, is read in the same way.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soundfile
import soxr

from musicldm.data.shards import INDEX_FILE, index_rows, open_recording

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
VALIDATION_SHARE = 0.05
VALIDATION_NAMES = ("validation", "val", "valid", "dev", "eval")
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(VALIDATION_NAMES, "validation")


class Clip(NamedTuple):
    """A stretch of one recording."""

    path: Path
    start_s: float
    duration_s: float  # of the recording from start_s on, at most one clip
    texts: tuple[str, ...]
    split: str  # "train", "validation" or "test"


class Item(NamedTuple):
    """One draw: which clip, and what seeds everything random about it."""

    epoch: int
    index: int


def load_clips(folder: str | Path, clip_s: float) -> list[Clip]:
    """Every clip of the collection: recordings cut into consecutive clips of ``clip_s``, a last piece kept from half.

    A recording shorter than a clip is one clip. The split is that of the metadata (`named_split`), else drawn from a
    hash of ``piece_id`` or the file's name, so that it never changes and never cuts a recording in two.

    Raises:
        FileNotFoundError: no folder, or no recordings in it.
        ValueError: a row of metadata that cannot be read, without ``file_name``, or with a split of another name.
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
            raise FileNotFoundError(f"the metadata in {folder} names {row['file_name']!r}, which is not there")
        texts = tuple(dict.fromkeys(row_texts(row)))
        split = named_split(row) or split_of(str(row.get("piece_id") or row["file_name"]))
        clips += _cut(path, soundfile.info(path).duration, clip_s, texts, split)
    if not clips:
        raise FileNotFoundError(f"no recordings in {folder} ({', '.join(SUFFIXES)})")
    return clips


def _cut(path: Path, duration_s: float, clip_s: float, texts: tuple[str, ...], split: str) -> list[Clip]:
    n = max(1, math.floor(duration_s / clip_s + 0.5))
    return [Clip(path, k * clip_s, min(clip_s, duration_s - k * clip_s), texts, split) for k in range(n)]


def metadata_rows(folder: Path) -> list[dict]:
    """The rows of the folder's metadata, or one with the ``file_name`` of each audio file.

    Raises:
        ValueError: a row that cannot be read, or without ``file_name``.
    """
    rows = read_metadata(folder)
    if rows is not None:
        return rows
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [{"file_name": str(path.relative_to(folder))} for path in paths]


def read_metadata(folder: Path) -> list[dict] | None:
    """The rows of ``metadata.jsonl``, else of ``metadata.csv``; None if the folder has neither.

    The CSV has a line with the names of its columns; empty cells are left out.

    Raises:
        ValueError: a row that cannot be read, or without ``file_name``.
    """
    if (file := folder / "metadata.jsonl").is_file():
        rows = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}, is not JSON: {error}") from error
    elif (file := folder / "metadata.csv").is_file():
        rows = _csv_rows(file)
    else:
        return None
    for number, row in rows:
        if not isinstance(row, dict) or not row.get("file_name"):
            raise ValueError(f"{file}, line {number}, has no file_name")
    return [row for _, row in rows]


def _csv_rows(file: Path) -> list[tuple[int, dict]]:
    """Line number and filled cells of each row of a table as spreadsheets write it, by comma or semicolon."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 ({error.reason} at byte {error.start})") from error
    header = text.partition("\n")[0]
    lines = csv.DictReader(
        text.splitlines(keepends=True), delimiter=";" if header.count(";") > header.count(",") else ","
    )
    rows = []
    for row in lines:
        if None in row:
            raise ValueError(
                f"{file}, line {lines.line_num}, has more cells than the first line has names: captions with commas "
                "belong in double quotes"
            )
        rows.append((lines.line_num, {name: cell.strip() for name, cell in row.items() if cell and cell.strip()}))
    return rows


def row_texts(row: dict) -> list[str]:
    """The captions in a row of metadata: ``text``, ``caption`` and ``texts``."""
    texts = [row.get("text"), row.get("caption"), *listed(row.get("texts"))]
    return [text for text in texts if text]


def licence_of(row: dict) -> str | None:
    """The licence in a row of metadata: ``licence`` or ``license``."""
    licence = row.get("licence") or row.get("license")
    return str(licence) if licence else None


def listed(value: object) -> list:
    """``value`` if it is a list, else a list of it alone."""
    return value if isinstance(value, list) else [value]


def named_split(row: dict) -> str | None:
    """``train``, ``validation`` (also called val, valid, dev or eval) or ``test``, as a row of metadata says; or None.

    Raises:
        ValueError: it says something else.
    """
    if not (said := row.get("split")):
        return None
    if (split := SPLITS.get(str(said).strip().lower())) is None:
        raise ValueError(f"the split of {row.get('file_name')} is {said!r}; it must be one of {', '.join(SPLITS)}")
    return split


def split_of(key: str) -> str:
    """``train`` or ``validation``, drawn from a hash of ``key``."""
    fraction = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    return "validation" if fraction < VALIDATION_SHARE else "train"


def split_clips(clips: list[Clip], share: float = 1.0) -> tuple[list[Clip], list[Clip]]:
    """``(training, validation)``; a collection too small for a validation share validates on its last recording.

    What is to test with is in neither. Of the training recordings `of_share` is kept.

    Raises:
        ValueError: fewer than two recordings, so nothing can be held out.
    """
    clips = [clip for clip in clips if clip.split != "test"]
    if len(paths := dict.fromkeys(clip.path for clip in clips)) < 2:
        found = ", ".join(path.name for path in paths) or "recordings of the split test"
        raise ValueError(f"training needs two recordings or more, to hold one out; found only {found}")
    train = [clip for clip in clips if clip.split != "validation"]
    validation = [clip for clip in clips if clip.split == "validation"]
    if not (train and validation):
        last = clips[-1].path
        train, validation = ([c for c in clips if (c.path == last) == held] for held in (False, True))
    return of_share(train, share), validation


def of_share(clips: list[Clip], share: float) -> list[Clip]:
    """The clips of a ``share`` of their recordings, at least one: those of lowest hash of their name.

    So a smaller share is part of a larger one.
    """

    def place(path: Path) -> tuple[bytes, str]:
        return hashlib.sha256(path.name.encode()).digest(), str(path)  # names may come twice, in several folders

    recordings = sorted({clip.path for clip in clips}, key=place)
    kept = set(recordings[: math.ceil(share * len(recordings))])
    return [clip for clip in clips if clip.path in kept]


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


class SegmentDataset:
    """Waveform segments ``(n_samples,)``: ``dataset[Item(epoch, index)]`` cuts one at random from the clip.

    For torch's ``DataLoader``; preparing a collection reads this module too, and needs no torch.
    """

    def __init__(self, clips: list[Clip], sample_rate: int, n_samples: int, seed: int, random_start: bool = True):
        self.clips, self.sample_rate, self.n_samples = clips, sample_rate, n_samples
        self.seed, self.random_start = seed, random_start

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: Item) -> Tensor:
        import torch

        clip = self.clips[item.index]
        spare_s = max(0.0, clip.duration_s - self.n_samples / self.sample_rate)
        offset_s = item_rng(self.seed, item, "start").uniform(0, spare_s) if self.random_start else 0.0
        return torch.from_numpy(read_clip(clip, self.sample_rate, self.n_samples, offset_s))
