"""A folder of recordings with captions, read once in a run and then passed on.

    FOLDER/metadata.jsonl or metadata.csv  ->  Collection  ->  Clip(path, start_s, texts, ...), licences, analysis
    FOLDER/index.parquet and shards        ->

Without metadata every audio file below the folder is used. Shards and an index are what `musicldm prepare` makes.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from musicldm.audio.reading import open_audio
from musicldm.data.clips import Clip, cut_clips
from musicldm.data.metadata import (
    OTHER_SUFFIXES,
    SUFFIXES,
    audio_files,
    differs_by_case,
    licence_of,
    metadata_rows,
    named_split,
    row_texts,
    split_of,
    table_of,
    unknown_columns,
)
from musicldm.data.shards import INDEX_FILE, index_rows

if TYPE_CHECKING:
    from musicldm.data.analysis import Analysed

INDEX_COLUMNS = ["file_name", "part", "group", "texts", "split", "licence", "duration_s"]  # of each recording


class Collection:
    """The recordings below ``folder``.

    Attributes:
        in_shards: whether `musicldm prepare` made the folder.
        rows: the metadata of each readable recording, with its ``path``.
        left_out: reasons why other recordings are not in ``rows``, by ``file_name``.

    Raises:
        FileNotFoundError: if there is no such folder; on reading ``rows``, if the metadata name a missing recording.
        ValueError: if a row of the metadata cannot be read, or has no ``file_name``.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"there is no data folder {folder}; check the path")
        self.in_shards = (self.folder / INDEX_FILE).is_file()
        self.left_out: dict[str, str] = {}
        self._durations: dict[Path, float] = {}
        self._named = [] if self.in_shards else metadata_rows(self.folder)

    @functools.cached_property
    def rows(self) -> list[dict]:
        if self.in_shards:
            return list(index_rows(self.folder, INDEX_COLUMNS))
        rows = [row | {"path": self.folder / row["file_name"]} for row in self._named]
        for path in dict.fromkeys(row["path"] for row in rows):
            name = str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)
            if not path.exists():
                like = differs_by_case(self.folder, name)
                hint = f"; {like} differs by the case of its letters" if like else ""
                raise FileNotFoundError(f"the metadata in {self.folder} names {name!r}, which is not there{hint}")
            try:
                with open_audio(path) as audio:
                    audio.check_end()
                    audio.warn()
                    self._durations[path] = audio.duration_s
            except (ValueError, PermissionError, IsADirectoryError) as error:
                self.left_out[name] = _reason(error, path)
        return [row for row in rows if row["path"] in self._durations]

    def clips(self, clip_s: float) -> list[Clip]:
        """All recordings, cut into consecutive clips of ``clip_s`` seconds; a last part of half a clip or more is kept.

        A recording shorter than a clip is one clip. The split comes from the metadata (`named_split`), otherwise from a
        hash of ``piece_id`` or the file's name, so that it never changes and all clips of a recording are in one split.

        Raises:
            FileNotFoundError: if there are no recordings, or the metadata name a missing one.
            ValueError: if a split has an unknown name, a file is in two splits, or a caption is not a string.
        """
        if not self.rows:
            why = "".join(f"; {name} {reason}" for name, reason in list(self.left_out.items())[:5])
            raise FileNotFoundError(f"no recordings in {self.folder} ({', '.join(SUFFIXES)}){why}")
        splits = self._splits()
        clips = []
        for row in self.rows:
            split = row["split"] if self.in_shards else splits[_file(row)]
            clips += cut_clips(row["path"], self.duration_s(row), clip_s, self.texts(row), split)
        return clips

    def _splits(self) -> dict[str, str]:
        """The split of each file; a file may have several rows, under several names (links)."""
        said: dict[str, tuple[str, dict]] = {}
        for row in () if self.in_shards else self.rows:
            if split := named_split(row):
                before, other = said.setdefault(_file(row), (split, row))
                if split != before:
                    raise ValueError(
                        f"the metadata in {self.folder} has {other['file_name']} in the split {before} and "
                        f"{row['file_name']}, which is the same file, in {split}: remove one of these rows"
                    )
        splits = {file: split for file, (split, _) in said.items()}
        for row in () if self.in_shards else self.rows:
            splits.setdefault(_file(row), split_of(self.group(row)))
        return splits

    def texts(self, row: dict) -> tuple[str, ...]:
        """The captions of a row's recording; ValueError if one is not a string."""
        try:
            return tuple(row["texts"] if self.in_shards else dict.fromkeys(row_texts(row)))
        except ValueError as error:
            raise ValueError(f"the metadata of {self.folder / row['file_name']}: {error}") from error

    def duration_s(self, row: dict) -> float:
        """The length of a row's recording."""
        return row["duration_s"] if self.in_shards else self._durations[row["path"]]

    def account(self) -> str:
        """One line: how many recordings the folder has, how many are used, and why the others are not."""
        used = len({row["path"] for row in self.rows})
        if self.in_shards:
            return f"{self.folder}: {used} recordings in shards"
        named = {row["file_name"] for row in self._named}
        there = audio_files(self.folder, SUFFIXES + OTHER_SUFFIXES)
        rest = [name for name in there if name not in named]
        unnamed, other = (
            [name for name in rest if (Path(name).suffix.lower() in SUFFIXES) == own] for own in (True, False)
        )
        words = [f"{self.folder}: {used} of {len(named | set(there))} recordings are used"]
        words += [_some(unnamed, "that its metadata does not name")] if unnamed else []
        words += [_some(other, "of formats that `musicldm prepare` reads")] if other else []
        words += [f"{name} {reason}" for name, reason in list(self.left_out.items())[:5]]
        words += [f"{len(self.left_out) - 5} more that cannot be read"] if len(self.left_out) > 5 else []
        if table_of(self.folder):
            bare = [row["file_name"] for row in self.rows if not self.texts(row)]
            words += [_some(bare, "without a caption")] if bare else []
            unknown = dict.fromkeys(name for row in self._named for name in unknown_columns(row))
            words += [f"columns that nothing reads: {', '.join(list(unknown)[:9])}"] if unknown else []
        return "; ".join(words)

    def check_captions(self, wanted: bool = False) -> None:
        """Raise ValueError if the metadata have no caption; warn without metadata if captions are ``wanted``."""
        if any(self.texts(row) for row in self.rows):
            return
        table = None if self.in_shards else table_of(self.folder)
        if table:
            columns = dict.fromkeys(name for row in self._named for name in row)
            raise ValueError(
                f"no recording of {self.folder} has a caption ({table.name} has the columns {', '.join(columns)}): "
                "name the column of captions text, or train without any by captions=none"
            )
        if wanted:
            print(f"{self.folder} has no captions: the condition is always the recording itself", file=sys.stderr)

    def group(self, row: dict) -> str:
        """Group of a row's recording, the same for all versions of its piece."""
        return row["group"] if self.in_shards else str(row.get("piece_id") or row["file_name"])

    def licences(self) -> dict[Path, str | None]:
        """The licence of each recording by its path; None where none is stated."""
        return {row["path"]: licence_of(row) for row in self.rows}

    def analysis(self, tracker: str | None = "madmom") -> list[Analysed]:
        """The analysis of each recording for mixing; missing values are measured, beats by ``tracker``.

        Without a tracker nothing is measured, which is enough for mixing random pairs.
        """
        from musicldm.data.analysis import analyse_collection, unmeasured

        return unmeasured(self) if tracker is None else analyse_collection(self, tracker)


def _file(row: dict) -> str:
    return os.path.realpath(row["path"])


def _reason(error: Exception, path: Path) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said.removeprefix(str(path)).strip()


def _some(names: list[str], what: str) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what} ({shown})"


def as_collection(data: str | Path | Collection) -> Collection:
    """``data`` itself if it is a collection, otherwise the collection in that folder."""
    return data if isinstance(data, Collection) else Collection(data)


def load_clips(folder: str | Path, clip_s: float) -> list[Clip]:
    """`Collection.clips` of the collection in ``folder``."""
    return Collection(folder).clips(clip_s)


def split_clips(clips: list[Clip], share: float = 1.0) -> tuple[list[Clip], list[Clip]]:
    """Training and validation clips. If no recording is in the validation split, the last recording is held out.

    Recordings of the test split are in neither. Of the training recordings, `of_share` are kept.

    Raises:
        ValueError: if there are fewer than two recordings, so that none can be held out.
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
    """The clips of a ``share`` of the recordings, at least one: those with the lowest hashes of their names.

    A smaller share is therefore a subset of a larger one.
    """

    def place(path: Path) -> tuple[bytes, str]:
        return hashlib.sha256(os.fsencode(path.name)).digest(), str(path)  # names may come twice, in several folders

    recordings = sorted({clip.path for clip in clips}, key=place)
    kept = set(recordings[: math.ceil(share * len(recordings))])
    return [clip for clip in clips if clip.path in kept]
