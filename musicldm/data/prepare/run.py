"""Makes training data from a folder of recordings.

    FOLDER  ->  decode, measure (one file at a time, kept in DIR/.work)  ->  duplicates, captions, split
            ->  DIR/shards/*.tar, DIR/index.parquet, DIR/errors.jsonl

The index has one row per recording, or per 20 minutes of a longer one (part_s), sorted by file and part:

    file_name              relative to FOLDER
    part                   number of the part of a long recording, from 0
    group                  the same for versions of one piece: its piece_id, otherwise a file name
    duplicate_of           the file that this one is a copy of; copies are listed, but not in the shards
    split                  train, validation or test; one for a whole group
    shard, member          location below DIR/shards; null for copies
    texts, tags            captions and keywords
    licence                from the metadata
    duration_s             seconds
    source_sample_rate_hz, source_channels    of the file; shards have the rate and channels of the settings
    peak                   largest magnitude before storing; samples above 1 are clipped

and, measured on the mean of the channels:

    loudness_lufs          integrated, ITU-R BS.1770; null for silence
    block_loudness_lufs    of each gating block: 0.4 s long, one every 0.1 s
    silence_share          share of silent blocks
    tracker, beats_s, downbeats_s, beats_per_bar, tempo_bpm, confidence    from `augment.track_beats`
    key, key_clarity       such as "C major"; its margin over the next best key
    digest                 of the stored samples

Numbers are rounded to four decimals or fewer. Nothing depends on the time, on absolute paths or on the number of
workers: two runs over one folder give equal files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from augment.beats import TRACKERS, load_tracker
from musicldm.audio.output import check_mark, read_mark, remove_own, sole_writer, write_whole
from musicldm.audio.reading import identity
from musicldm.audio.workers import Apart, Crash, Workers
from musicldm.data.cluster import map_on_cluster
from musicldm.data.metadata import differs_by_case, split_of, unknown_columns
from musicldm.data.prepare.captions import CAPTIONS, caption_function, find_metadata, metadata_of, texts_of
from musicldm.data.prepare.duplicates import find_duplicates, group_of_each
from musicldm.data.prepare.index import IndexWriter
from musicldm.data.shards import INDEX_FILE, SHARD_BYTES, ShardWriter

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".aif", ".aiff")
DONE_FILE, ERRORS_FILE = "prepared.json", "errors.jsonl"
WORK, SETTINGS = ".work", "settings.json"  # working folder of a run; its settings, which mark the output folder


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of `prepare`."""

    sample_rate: int = 16_000  # Hz, of the shards
    tracker: str = "madmom"  # or beat_this, librosa
    captions: str = "keep"  # keep: write missing ones; tags: write all from tags and measurements; none
    caption_function: str = ""  # MODULE:FUNCTION, takes a row of the index with its path, returns captions
    shard_bytes: int = SHARD_BYTES
    part_s: float = 1200.0  # seconds; longer recordings are stored in several parts
    channels: int = 1  # of the shards: 1 (the mean) or 2

    def __post_init__(self):
        if not 8000 <= self.sample_rate <= 48_000:
            raise ValueError(f"sample_rate must be from 8000 to 48000 Hz, got {self.sample_rate}")
        if self.channels not in (1, 2):
            raise ValueError(f"channels must be 1 or 2, got {self.channels}")
        if self.tracker not in TRACKERS:
            raise ValueError(f"tracker must be one of {', '.join(TRACKERS)}, got {self.tracker!r}")
        if self.captions not in CAPTIONS:
            raise ValueError(f"captions must be one of {', '.join(CAPTIONS)}, got {self.captions!r}")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes must be positive, got {self.shard_bytes}")

    def settings(self) -> dict:
        """The settings that mark a folder; mono is left out, as in folders of earlier versions."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("channels", 1)}


class Prepared(NamedTuple):
    """Result of a run."""

    recordings: int  # in the shards
    duplicates: int
    failed: int  # files that cannot be used; errors.jsonl lists them
    audio_s: float  # in the shards


def find_files(folder: Path, leave_out: Sequence[Path] = ()) -> list[str]:
    """Names of all recordings below ``folder`` but not below ``leave_out``, sorted; links to folders are not followed.

    Raises:
        FileNotFoundError: if there is no such folder, or no recording in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of recordings {folder}; check the path")
    names = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(root, name) not in leave_out]
        named = [*files, *folders]  # folders with names such as x.wav are listed as errors
        named = [name for name in named if not name.startswith("._")]  # files of macOS
        names += [Path(root, name).relative_to(folder).as_posix() for name in named if name.lower().endswith(SUFFIXES)]
    if not names:
        raise FileNotFoundError(f"no recordings in {folder} ({', '.join(SUFFIXES)})")
    return sorted(names)


def prepare(
    folder: Path, out: Path, config: PrepareConfig, workers: int | None = None, ray: str | None = None
) -> Prepared:
    """Make training data from the recordings in ``folder``; a stopped run continues when it is called again.

    Args:
        workers: files measured at once; by default 1, and on a cluster one for each processor.
        ray: HOST:PORT of the head of a Ray cluster whose machines measure the files, or ``auto`` for one that this
            machine belongs to. ``folder`` and ``out`` must be on storage that all of them share, at the same paths.

    Raises:
        ValueError: if ``out`` holds data made from other files or with other settings.
        FileExistsError: if ``out`` holds files of other origin under names that this writes.
        BlockingIOError: if another process works in ``out``.
        FileNotFoundError: if there is no folder or no recording in it, or a machine of the cluster does not see them.
        ImportError: if a package is missing.
        ConnectionError: if there is no such cluster.
    """
    folder, out = Path(os.path.abspath(folder)), Path(os.path.abspath(out))  # other machines have other current ones
    for package in ("av", "pyarrow", "pyloudnorm"):  # needed at the latest at the end of the work
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"preparing needs {package}: run `pip install 'musicldm[prepare]'`")
    work = out / WORK
    names = find_files(folder, leave_out=(out, work))
    own = caption_function(config.caption_function) if config.caption_function else None
    metadata = find_metadata(folder)
    print(account(folder, names, metadata), file=sys.stderr)
    if (out / DONE_FILE).is_file():
        done = read_mark(out / DONE_FILE, "prepare", "settings", "files", "made")
        listings = (_listing(folder, names, metadata), _listing(folder, names, metadata, by_size=True))
        if done["settings"] != config.settings() or done["files"] not in listings:
            raise ValueError(f"{out} holds data made of other files or with other settings: choose another folder")
        return Prepared(**done["made"])
    check_mark(out, f"{WORK}/{SETTINGS}", (DONE_FILE, ERRORS_FILE, INDEX_FILE, "shards", WORK), "prepare")
    with sole_writer(out, "prepare"):
        measure_files(names, Measure(folder, work, config), workers, ray)
        made = assemble(folder, names, out, config, metadata, own)
        done = {"settings": config.settings(), "files": _listing(folder, names, metadata), "made": made._asdict()}
        write_whole(out / DONE_FILE, (json.dumps(done, indent=1) + "\n").encode())
        shutil.rmtree(work)
    return made


def account(folder: Path, names: list[str], metadata: dict) -> str:
    """One line: how many recordings there are, and how many do not match the metadata."""
    words = [f"{folder}: {len(names)} recordings"]
    if metadata:
        counts = len(metadata.keys() - set(names)), len(set(names) - metadata.keys())
        words += [f"{counts[0]} more in the metadata"] * bool(counts[0])
        words += [f"{counts[1]} that the metadata does not name"] * bool(counts[1])
        unknown = dict.fromkeys(name for row in metadata.values() for name in unknown_columns(row))
        words += [f"columns that nothing reads: {', '.join(list(unknown)[:9])}"] * bool(unknown)
    return "; ".join(words)


def measure_files(names: list[str], measure: Measure, workers: int | None, ray: str | None) -> None:
    """Measure those of ``names`` that are not measured yet; raises the errors of `prepare`."""
    folder, work, config = measure.folder, measure.work, measure.config
    work.mkdir(parents=True, exist_ok=True)
    settings = work / SETTINGS
    if settings.exists() and read_mark(settings, "prepare", "sample_rate") != config.settings():
        raise ValueError(
            f"{work.parent} holds an unfinished run with other settings: repeat those, or choose another folder"
        )
    write_whole(settings, json.dumps(config.settings()).encode())

    missing = [Job(name, result) for name in names if not (result := _result(work, folder, name)).exists()]
    each = (
        _here(measure, missing, workers or 1) if ray is None else map_on_cluster(Apart(measure), missing, ray, workers)
    )
    with tqdm(total=len(names), initial=len(names) - len(missing), unit="file", desc="prepare", file=sys.stderr) as bar:
        for place, found in each:
            if isinstance(found, Crash):
                write_whole(missing[place].result, json.dumps({"error": found.reason}).encode())
            bar.update()


def _here(measure: Measure, jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Crash | None]]:
    """Run ``jobs`` in processes of this machine; gives the index of each when it is done."""
    with Workers(measure, min(workers, max(1, len(jobs)))) as pool:
        yield from pool.map(jobs)


def _listing(folder: Path, names: list[str], metadata: dict, by_size: bool = False) -> str:
    """A digest of the identities of all files, earlier versions' of their sizes, and of what comes with them."""
    lines = []
    for name in names:
        try:
            about = json.dumps(metadata_of(folder / name, metadata.get(name)))
            path = folder / name
            lines.append(f"{name} {path.stat().st_size if by_size else identity(path)} {about}")
        except (OSError, ValueError):
            lines.append(f"{name} cannot be read")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _result(work: Path, folder: Path, name: str) -> Path:
    """Where the rows of the file ``name`` are kept while a run is under way; a changed file has another place."""
    try:
        about = f"{name} {identity(folder / name)}"
    except OSError:
        about = name
    return work / f"{hashlib.sha256(about.encode(errors='surrogateescape')).hexdigest()[:24]}.json"


class Job(NamedTuple):
    """A file to measure."""

    name: str
    result: Path  # which says what became of it


@dataclass(frozen=True)
class Measure:
    """``measure(job)`` decodes and measures one file of a run: job.result, written last, -PART.flac and -PART.npy."""

    folder: Path
    work: Path
    config: PrepareConfig

    def __call__(self, job: Job) -> None:
        from musicldm.data.prepare.measure import measure_file

        for shared in (self.folder, self.work):
            if not shared.is_dir():
                raise FileNotFoundError(
                    f"{socket.gethostname()} does not see {shared}: all machines of a cluster must share the "
                    "recordings and the result, at the same paths"
                )
        load_tracker(self.config.tracker)  # a missing package is not an error of the file
        rows: list[dict] = []
        error = None
        try:
            job.name.encode()
        except UnicodeEncodeError:
            error = "has a name that is not UTF-8"
        config = self.config
        path = self.folder / job.name
        parts = measure_file(path, config.sample_rate, config.tracker, config.part_s, config.channels)
        while error is None:
            try:
                part = next(parts, None)
            except ImportError:
                raise
            except Exception as problem:  # whatever decoders make of a damaged file
                error = reason_of(problem)
                break
            if part is None:
                break
            place = job.result.with_name(f"{job.result.stem}-{part.row['part']}")
            words = io.BytesIO()
            np.save(words, part.words)
            write_whole(place.with_suffix(".flac"), part.flac)
            write_whole(place.with_suffix(".npy"), words.getvalue())
            rows.append({"file_name": job.name, **part.row})
        found = {"rows": rows} if error is None else {"error": error}
        write_whole(job.result, json.dumps(found).encode())


def reason_of(error: Exception) -> str:
    """The reason in a line of errors.jsonl, without absolute paths."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if isinstance(error, ValueError) and str(error) else f"{type(error).__name__}: {error}"


def assemble(folder: Path, names: list[str], out: Path, config: PrepareConfig, metadata: dict, own) -> Prepared:
    """Write shards, errors and index from the measurements, in the order of the names.

    Memory holds about 1 kB per recording, and 8 kB of fingerprint per minute of it.
    """
    work = out / WORK
    rows, places, errors = [], [], []
    for name in sorted(metadata.keys() - set(names)):
        if (folder / name).exists():
            error = f"is named in the metadata, and none of {', '.join(SUFFIXES)}"
        else:
            like = differs_by_case(folder, name)
            error = "is named in the metadata, and not there" + (f"; {like} is" if like else "")
        errors.append({"file_name": name, "error": error})
    for name in names:
        result = _result(work, folder, name)
        found = json.loads(result.read_text())
        if "error" not in found:
            try:
                known = metadata_of(folder / name, metadata.get(name))
            except ValueError as error:
                found = {"error": str(error)}
        if "error" in found:
            errors.append({"file_name": name, "error": found["error"]})
            continue
        for row in found["rows"]:
            rows.append({key: row[key] for key in ("file_name", "part", "digest")} | known)
            places.append(result.with_name(f"{result.stem}-{row['part']}"))
    errors.sort(key=lambda error: error["file_name"])
    _join(rows, [np.load(place.with_suffix(".npy")) for place in places])

    shards, index = work / "shards", work / INDEX_FILE
    shutil.rmtree(shards, ignore_errors=True)
    made = Prepared(0, 0, len(errors), 0.0)
    with ShardWriter(shards, config.shard_bytes) as writer, IndexWriter(index) as table:
        for short, place in zip(rows, places, strict=True):
            found = json.loads(_result(work, folder, short["file_name"]).read_text())
            row = next(row for row in found["rows"] if row["part"] == short["part"]) | short
            row["texts"] = texts_of(row, config.captions, own, folder / row["file_name"])
            row["shard"] = row["member"] = None
            if row["duplicate_of"] is not None:
                made = made._replace(duplicates=made.duplicates + 1)
            else:
                flac = place.with_suffix(".flac").read_bytes()
                about = {key: value for key, value in row.items() if key not in ("shard", "member")}
                text = json.dumps(about).encode()
                row["shard"], key = writer.next_name(len(flac) + len(text))
                row["member"] = f"{key}.flac"
                writer.write(key, {"flac": flac, "json": text})
                made = made._replace(recordings=made.recordings + 1, audio_s=round(made.audio_s + row["duration_s"], 3))
            table.write(row)
    remove_own(out / "shards", "*.tar")
    shards.rename(out / "shards")
    write_whole(out / ERRORS_FILE, "".join(json.dumps(error) + "\n" for error in errors).encode())
    index.replace(out / INDEX_FILE)
    return made


def _join(rows: list[dict], prints: list[np.ndarray]) -> None:
    """Give ``rows`` their group, duplicate_of and split: copies and parts of one file and piece stay together."""
    copies = find_duplicates(prints)
    by_digest: dict[str, int] = {}
    for i, row in enumerate(rows):
        if (first := by_digest.setdefault(row["digest"], i)) != i:
            copies.append((first, i))
    for i, first in enumerate(group_of_each(len(rows), copies)):
        same_file = rows[first]["file_name"] == rows[i]["file_name"]
        rows[i]["duplicate_of"] = None if first == i or same_file else rows[first]["file_name"]
    pieces: dict[str, int] = {}
    related = list(copies)
    for i, row in enumerate(rows):
        for piece in (f"file {row['file_name']}", f"piece {row['piece_id'] or ''}"):
            if piece != "piece " and (first := pieces.setdefault(piece, i)) != i:
                related.append((first, i))
    groups = group_of_each(len(rows), related)
    said: dict[int, str] = {}  # the split that the first of each group with one has
    for row, first in zip(rows, groups, strict=True):
        if row["split"]:
            said.setdefault(first, row["split"])
    for row, first in zip(rows, groups, strict=True):
        row["group"] = rows[first]["piece_id"] or rows[first]["file_name"]
        row["split"] = said.get(first) or split_of(row["group"])
    for row in rows:
        del row["piece_id"]
