"""Recordings in WebDataset shards, with random access and without unpacking.

    DIR/shards/000000.tar/00000007.flac   a recording: 16-bit FLAC, mono or stereo
    DIR/shards/000000.tar/00000007.json   its row of the index
    DIR/index.parquet                     one row per recording, see `musicldm.data.prepare`

A path such as the first one names a recording everywhere that this package reads one.
"""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from musicldm.audio.files import read_audio
from musicldm.audio.reading import Audio, Stretch, identity, open_audio

INDEX_FILE = "index.parquet"
SHARD_BYTES = 256 * 2**20


class ShardWriter:
    """Writes shards of about ``most_bytes`` to ``folder``; the same members give the same bytes."""

    def __init__(self, folder: Path, most_bytes: int = SHARD_BYTES):
        self.folder, self.most_bytes = folder, most_bytes
        self.tar, self.shards, self.members, self.n_bytes = None, 0, 0, 0
        folder.mkdir(parents=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_) -> None:
        if self.tar:
            self.tar.close()

    def next_name(self, n_bytes: int) -> tuple[str, str]:
        """Shard and key of the next recording, whose members take ``n_bytes``."""
        if self.tar is None or (self.n_bytes and self.n_bytes + n_bytes > self.most_bytes):
            if self.tar:
                self.tar.close()
            path = self.folder / f"{self.shards:06d}.tar"
            self.tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            self.shards, self.n_bytes = self.shards + 1, 0
        self.n_bytes += n_bytes
        self.members += 1
        return f"{self.shards - 1:06d}.tar", f"{self.members - 1:08d}"

    def write(self, key: str, files: dict[str, bytes]) -> None:
        """Add the files of one recording, by suffix."""
        for suffix, content in files.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")
            member.size = len(content)
            self.tar.addfile(member, io.BytesIO(content))


@functools.lru_cache(maxsize=4096)
def _members(shard: str, modified: int) -> dict[str, tuple[int, int]]:
    """Offset and size of each member of ``shard``."""
    with tarfile.open(shard) as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}


def _place(path: Path) -> tuple[int, int]:
    try:
        return _members(str(path.parent), path.parent.stat().st_mtime_ns)[path.name]
    except (OSError, KeyError) as error:
        raise FileNotFoundError(f"no recording at {path}") from error


def open_recording(path: Path) -> io.IOBase:
    """The recording at ``path``, a file or a member of a shard, open for reading.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if path.parent.suffix != ".tar":
        return path.open("rb")
    return Stretch(path.parent.open("rb"), *_place(path))


@contextmanager
def opened_recording(path: Path) -> Iterator[Audio]:
    """The recording at ``path`` as `musicldm.audio.reading.open_audio` has it."""
    if path.parent.suffix != ".tar":
        with open_audio(path) as audio:
            yield audio
    else:
        with open_recording(path) as file, open_audio(path, file) as audio:
            yield audio


def recording_identity(path: Path) -> str:
    """A value that changes when the recording at ``path`` changes (`musicldm.audio.reading.identity`)."""
    if path.parent.suffix != ".tar":
        return identity(path)
    with open_recording(path) as file:
        return identity(path.parent, file)


def read_recording(path: Path, sample_rate: int, channels: int = 1) -> np.ndarray:
    """Waveform (L,) or, with 2 ``channels``, (2, L) float32 of the recording at ``path``, at ``sample_rate``."""
    if path.parent.suffix != ".tar":
        return read_audio(path, sample_rate, channels)[0]
    with open_recording(path) as file:
        return read_audio(path, sample_rate, channels, file)[0]


def index_rows(folder: Path, columns: list[str] | None = None) -> Iterator[dict]:
    """The rows of the index in ``folder`` whose recordings are in the shards, with their ``path``."""
    import pyarrow.parquet as pq

    wanted = None if columns is None else [*columns, "shard", "member"]
    for batch in pq.ParquetFile(folder / INDEX_FILE).iter_batches(columns=wanted):
        for row in batch.to_pylist():
            if row["shard"] is not None:
                yield row | {"path": folder / "shards" / row["shard"] / row["member"]}
