"""A folder of recordings with captions, read once in a run and handed on to all that need to know of it.

    FOLDER/metadata.jsonl or metadata.csv  ->  Collection  ->  Clip(path, start_s, texts, ...), licences, analysis
    FOLDER/index.parquet and shards        ->

Without metadata every audio file below the folder is used. Shards and an index are what `musicldm prepare` makes.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile

from musicldm.data.clips import Clip, cut_clips
from musicldm.data.metadata import SUFFIXES, licence_of, metadata_rows, named_split, row_texts, split_of
from musicldm.data.shards import INDEX_FILE, index_rows

if TYPE_CHECKING:
    from musicldm.data.analysis import Analysed

INDEX_COLUMNS = ["file_name", "part", "group", "texts", "split", "licence", "duration_s"]  # of each recording


class Collection:
    """The recordings below ``folder``.

    Attributes:
        in_shards: whether `musicldm prepare` made the folder.
        rows: the metadata of each recording; ``path`` is where it is.

    Raises:
        FileNotFoundError: no folder.
        ValueError: a row of metadata that cannot be read, or without ``file_name``.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no data folder at {folder}")
        self.in_shards = (self.folder / INDEX_FILE).is_file()
        if self.in_shards:
            self.rows = list(index_rows(self.folder, INDEX_COLUMNS))
        else:
            self.rows = [row | {"path": self.folder / row["file_name"]} for row in metadata_rows(self.folder)]
        self._durations: dict[Path, float] = {}

    def clips(self, clip_s: float) -> list[Clip]:
        """Every clip: recordings cut into consecutive clips of ``clip_s``, a last piece kept from half.

        A recording shorter than a clip is one clip. The split is that of the metadata (`named_split`), else drawn from
        a hash of ``piece_id`` or the file's name, so that it never changes and never cuts a recording in two.

        Raises:
            FileNotFoundError: no recordings, or one that the metadata names is not there.
            ValueError: a split of another name.
        """
        if not self.rows:
            raise FileNotFoundError(f"no recordings in {self.folder} ({', '.join(SUFFIXES)})")
        clips = []
        for row in self.rows:
            texts = tuple(row["texts"] if self.in_shards else dict.fromkeys(row_texts(row)))
            split = row["split"] if self.in_shards else named_split(row) or split_of(self.group(row))
            clips += cut_clips(row["path"], self._duration_s(row), clip_s, texts, split)
        return clips

    def group(self, row: dict) -> str:
        """What a row's recording has in common with other versions of its piece."""
        return row["group"] if self.in_shards else str(row.get("piece_id") or row["file_name"])

    def licences(self) -> dict[Path, str | None]:
        """The licence of each recording by its path; None where none is stated."""
        return {row["path"]: licence_of(row) for row in self.rows}

    def analysis(self, tracker: str | None = "madmom") -> list[Analysed]:
        """What mixing needs to know of each recording; what is missing is measured, beats by ``tracker``.

        Without a tracker nothing is measured: what mixing random pairs needs.
        """
        from musicldm.data.analysis import analyse_collection, unmeasured

        return unmeasured(self) if tracker is None else analyse_collection(self, tracker)

    def _duration_s(self, row: dict) -> float:
        if self.in_shards:
            return row["duration_s"]
        if (path := row["path"]) not in self._durations:
            if not path.is_file():
                raise FileNotFoundError(f"the metadata in {self.folder} names {row['file_name']!r}, which is not there")
            self._durations[path] = soundfile.info(path).duration
        return self._durations[path]


def as_collection(data: str | Path | Collection) -> Collection:
    """``data``, or the collection in that folder."""
    return data if isinstance(data, Collection) else Collection(data)


def load_clips(folder: str | Path, clip_s: float) -> list[Clip]:
    """`Collection.clips` of the collection in ``folder``."""
    return Collection(folder).clips(clip_s)


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
