"""A folder of recordings, made into training data.

    FOLDER  ->  decode, measure (one file at a time, kept in DIR/.work)  ->  duplicates, captions, split
            ->  DIR/shards/*.tar, DIR/index.parquet, DIR/errors.jsonl

The index has one row per recording, or per 20 minutes of a longer one, sorted by file and part:

    file_name              relative to FOLDER
    part                   from 0; which 20 minutes
    group                  recordings of one group are versions of one piece: its piece_id, else a file name
    duplicate_of           the file that it is a copy of; copies are listed, and not in the shards
    split                  train or validation; one for a whole group
    shard, member          where it is, below DIR/shards; null for copies
    texts, tags            captions and keywords
    duration_s             seconds
    source_sample_rate_hz, source_channels    of the file; what is stored is mono, at the rate asked for
    peak                   largest magnitude before storing; above 1 was clipped
    loudness_lufs          integrated, ITU-R BS.1770; null for silence
    block_loudness_lufs    of each gating block: 0.4 s long, one every 0.1 s
    silence_share          of these blocks
    tracker, beats_s, downbeats_s, beats_per_bar, tempo_bpm, confidence    as `augment.track_beats` has them
    key, key_clarity       "C major"; how much better it fits than the next key
    digest                 of the stored samples

Numbers are rounded to four decimals or fewer, nothing depends on the time, the machine's paths or the number of
workers: two runs over one folder give equal files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from augment.beats import TRACKERS
from musicldm.audio import write_whole
from musicldm.data.clips import split_of
from musicldm.data.duplicates import find_duplicates, group_of_each
from musicldm.data.prepare_captions import CAPTIONS, caption_function, find_metadata, metadata_of, texts_of
from musicldm.data.shards import INDEX_FILE, SHARD_BYTES, ShardWriter

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".aif", ".aiff")
DONE_FILE, ERRORS_FILE = "prepared.json", "errors.jsonl"
ROWS_PER_GROUP = 1024


@dataclass(frozen=True)
class PrepareConfig:
    """What to make of a folder."""

    sample_rate: int = 16_000  # Hz, of what is stored
    tracker: str = "madmom"  # or beat_this, librosa
    captions: str = "keep"  # and write what is missing; tags: write all, from tags and measurements; or none
    caption_function: str = ""  # MODULE:FUNCTION, which gets a row of the index and returns captions
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self):
        if not 8000 <= self.sample_rate <= 48_000:
            raise ValueError(f"sample_rate must be from 8000 to 48000 Hz, got {self.sample_rate}")
        if self.tracker not in TRACKERS:
            raise ValueError(f"tracker must be one of {', '.join(TRACKERS)}, got {self.tracker!r}")
        if self.captions not in CAPTIONS:
            raise ValueError(f"captions must be one of {', '.join(CAPTIONS)}, got {self.captions!r}")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes must be positive, got {self.shard_bytes}")


class Prepared(NamedTuple):
    """What a run made."""

    recordings: int  # in the shards
    duplicates: int
    failed: int  # files that cannot be used, each a line in errors.jsonl
    audio_s: float  # in the shards


def find_files(folder: Path) -> list[str]:
    """Names of all recordings below ``folder``, sorted; symbolic links to folders are not followed.

    Raises:
        FileNotFoundError: no folder, or no recordings in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of recordings at {folder}")
    names = []
    for root, folders, files in os.walk(folder):
        named = [*files, *folders]  # a folder called x.wav is somebody's mistake, and is listed as one
        names += [Path(root, name).relative_to(folder).as_posix() for name in named if name.lower().endswith(SUFFIXES)]
    if not names:
        raise FileNotFoundError(f"no recordings in {folder} ({', '.join(SUFFIXES)})")
    return sorted(names)


def prepare(folder: Path, out: Path, config: PrepareConfig, workers: int = 1) -> Prepared:
    """Make training data of the recordings in ``folder``; a run that was stopped continues where it was.

    Raises:
        ValueError: ``out`` holds something made of other files or with other settings.
        FileNotFoundError: no folder, or no recordings in it.
    """
    folder, out = Path(folder), Path(out)
    names = find_files(folder)
    own = caption_function(config.caption_function) if config.caption_function else None
    metadata = find_metadata(folder)
    work = out / ".work"
    if (out / DONE_FILE).is_file():
        done = json.loads((out / DONE_FILE).read_text())
        if done["settings"] != asdict(config) or done["files"] != _listing(folder, names, metadata):
            raise ValueError(f"{out} holds data made of other files or with other settings: choose another folder")
        shutil.rmtree(work, ignore_errors=True)
        return Prepared(**done["made"])
    work.mkdir(parents=True, exist_ok=True)
    settings = work / "settings.json"
    if settings.exists() and json.loads(settings.read_text()) != asdict(config):
        raise ValueError(f"{out} holds an unfinished run with other settings: repeat those, or choose another folder")
    write_whole(settings, json.dumps(asdict(config)).encode())

    missing = [name for name in names if not _result(work, folder, name).exists()]
    bar = tqdm(total=len(names), initial=len(names) - len(missing), unit="file", desc="prepare", file=sys.stderr)
    for _ in _each_done(folder, missing, work, config, workers):
        bar.update()
    bar.close()
    made = assemble(folder, names, out, config, metadata, own)
    done = {"settings": asdict(config), "files": _listing(folder, names, metadata), "made": made._asdict()}
    write_whole(out / DONE_FILE, (json.dumps(done, indent=1) + "\n").encode())
    shutil.rmtree(work)
    return made


def _each_done(folder: Path, names: list[str], work: Path, config: PrepareConfig, workers: int) -> Iterator[None]:
    if workers == 1:
        for name in names:
            yield measure_into(folder, name, work, config)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(measure_into, folder, name, work, config) for name in names]):
            yield future.result()


def _listing(folder: Path, names: list[str], metadata: dict) -> str:
    """A digest of the names and sizes of all files, and of what comes with them."""
    lines = []
    for name in names:
        try:
            about = json.dumps(metadata_of(folder / name, metadata.get(name)))
            lines.append(f"{name} {(folder / name).stat().st_size} {about}")
        except (OSError, ValueError):
            lines.append(f"{name} cannot be read")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _result(work: Path, folder: Path, name: str) -> Path:
    """Where the rows of the file ``name`` are kept while a run is under way; a changed file has another place."""
    try:
        stat = (folder / name).stat()
        about = f"{name} {stat.st_size} {stat.st_mtime_ns}"
    except OSError:
        about = name
    return work / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.json"


def measure_into(folder: Path, name: str, work: Path, config: PrepareConfig) -> None:
    """Decode and measure one file: NAME.json in ``work``, written last, and NAME-PART.flac, NAME-PART.npy before."""
    from musicldm.data.prepare_measure import measure_file

    result = _result(work, folder, name)
    rows = []
    try:
        for part in measure_file(folder / name, config.sample_rate, config.tracker):
            place = result.with_name(f"{result.stem}-{len(rows)}")
            words = io.BytesIO()
            np.save(words, part.words)
            write_whole(place.with_suffix(".flac"), part.flac)
            write_whole(place.with_suffix(".npy"), words.getvalue())
            rows.append({"file_name": name, **part.row})
        found = {"rows": rows}
    except (ValueError, OSError) as error:
        reason = error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
        found = {"error": reason}
    write_whole(result, json.dumps(found).encode())


def assemble(folder: Path, names: list[str], out: Path, config: PrepareConfig, metadata: dict, own) -> Prepared:
    """Write shards, errors and index from what was measured: one writer, in the order of the names."""
    rows, places, errors = [], [], []
    for name in names:
        result = _result(out / ".work", folder, name)
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
            rows.append(row | known)
            places.append(result.with_name(f"{result.stem}-{row['part']}"))
    _join(rows, [np.load(place.with_suffix(".npy")) for place in places])

    shards = out / ".work" / "shards"
    shutil.rmtree(shards, ignore_errors=True)
    made = Prepared(0, 0, len(errors), 0.0)
    with ShardWriter(shards, config.shard_bytes) as writer:
        for row, place in zip(rows, places, strict=True):
            row["texts"] = texts_of(row, config.captions, own)
            row["shard"] = row["member"] = None
            if row["duplicate_of"] is not None:
                made = made._replace(duplicates=made.duplicates + 1)
                continue
            flac = place.with_suffix(".flac").read_bytes()
            about = json.dumps({key: value for key, value in row.items() if key not in ("shard", "member")}).encode()
            row["shard"], key = writer.next_name(len(flac) + len(about))
            row["member"] = f"{key}.flac"
            writer.write(key, {"flac": flac, "json": about})
            made = made._replace(recordings=made.recordings + 1, audio_s=round(made.audio_s + row["duration_s"], 3))
    shutil.rmtree(out / "shards", ignore_errors=True)
    shards.rename(out / "shards")
    write_whole(out / ERRORS_FILE, "".join(json.dumps(error) + "\n" for error in errors).encode())
    write_index(out / INDEX_FILE, rows)
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
    for row, first in zip(rows, groups, strict=True):
        row["group"] = rows[first]["piece_id"] or rows[first]["file_name"]
        row["split"] = rows[first]["split"] or split_of(row["group"])
    for row in rows:
        del row["piece_id"]


def write_index(path: Path, rows: list[dict]) -> None:
    """Write ``rows`` as Parquet, in row groups of fixed size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number, texts, numbers = pa.string(), pa.float64(), pa.list_(pa.string()), pa.list_(pa.float64())
    schema = pa.schema(
        [
            ("file_name", text),
            ("part", pa.int32()),
            ("group", text),
            ("duplicate_of", text),
            ("split", text),
            ("shard", text),
            ("member", text),
            ("texts", texts),
            ("tags", texts),
            ("duration_s", number),
            ("source_sample_rate_hz", pa.int32()),
            ("source_channels", pa.int32()),
            ("peak", number),
            ("loudness_lufs", number),
            ("block_loudness_lufs", numbers),
            ("silence_share", number),
            ("tracker", text),
            ("beats_s", numbers),
            ("downbeats_s", numbers),
            ("beats_per_bar", pa.int32()),
            ("tempo_bpm", number),
            ("confidence", number),
            ("key", text),
            ("key_clarity", number),
            ("digest", text),
        ]
    )
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), table, row_group_size=ROWS_PER_GROUP, compression="zstd")
    write_whole(path, table.getvalue())
