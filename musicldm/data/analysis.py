"""Beats, loudness and key of the recordings of a collection, measured once and stored beside them for mixing.

    recording  ->  beats, loudness  ->  one line of FOLDER/analysis.jsonl

Each line is a JSON object:

    file_name       relative to the folder, as in metadata.jsonl
    bytes           size of the file when it was analysed
    identity        of that file: time, size and a hash of its ends; lines by earlier versions lack it
    digest          SHA-256 of the decoded samples, first 16 hexadecimal digits: equal for exact duplicates
    group           piece_id of the metadata, else the file's name; versions of one piece share it
    duration_s      seconds
    tracker         which beat tracker; "score" for beats known from what was played, which are always current
    beats_s         seconds from the start, ascending
    downbeats_s     a subset of them
    beats_per_bar   0 if unknown
    tempo_bpm       0 without beats
    confidence      of the beats, 0 to 1
    key             "C major" and the like, of the metadata; null if unknown
    loudness_lufs   of each gating block of BS.1770: 0.4 s long, one every 0.1 s

A line is valid while the file's identity is the same, or its size and samples are (as for a copy of the file). A line
without identity is valid while the file has that size and is older than the analysis. Groups always come from the
metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from augment.beats import track_beats
from augment.mixup import block_loudness
from augment.pairing import Recording
from musicldm.audio import read_audio
from musicldm.audio.reading import identity
from musicldm.audio.text import read_lines
from musicldm.data.collection import Collection, as_collection
from musicldm.data.shards import index_rows

ANALYSIS_FILE = "analysis.jsonl"
FROM_SCORE = "score"  # in place of a tracker
MEASURED = ["block_loudness_lufs", "digest", "key"]  # columns of an index that become an `Analysed`, besides its rows
MEASURED += ["beats_s", "downbeats_s", "beats_per_bar", "tempo_bpm", "confidence"]


class Analysed(NamedTuple):
    """A recording of a collection."""

    path: Path
    recording: Recording
    loudness_lufs: np.ndarray  # (K,) of its gating blocks
    digest: str  # of its samples


def analyse(waveform: np.ndarray, sample_rate: int, tracker: str = "madmom") -> dict:
    """The measured part of a line of analysis for ``waveform`` (L,)."""
    beats = track_beats(waveform, sample_rate, tracker)
    return {
        "digest": digest_of(waveform),
        "duration_s": round(len(waveform) / sample_rate, 4),
        "tracker": tracker,
        "beats_s": [round(float(time_s), 4) for time_s in beats.times_s],
        "downbeats_s": [round(float(time_s), 4) for time_s in beats.downbeats_s],
        "beats_per_bar": beats.beats_per_bar,
        "tempo_bpm": round(beats.tempo_bpm, 3),
        "confidence": round(beats.confidence, 4),
        "loudness_lufs": [round(float(value), 2) for value in block_loudness(waveform, sample_rate)],
    }


def analyse_collection(folder: str | Path | Collection, tracker: str = "madmom") -> list[Analysed]:
    """The analysis of every recording of ``folder``; missing and outdated lines are measured and added to the file.

    For a folder that `musicldm prepare` made it comes from the index, whichever tracker was used.

    Each line is written at once, so a stopped run loses at most one recording's work.

    Raises:
        FileNotFoundError: no folder, or no recordings in it.
        ValueError: a recording that cannot be read, or a line that is not JSON.
    """
    collection = as_collection(folder)
    folder, rows = collection.folder, collection.rows
    if collection.in_shards:
        measured = index_rows(folder, MEASURED)
        pairs = ((row | more, more["block_loudness_lufs"]) for row, more in zip(rows, measured, strict=True))
        return [as_analysed(row["path"], row | {"loudness_lufs": loudness}) for row, loudness in pairs]
    if not rows:
        raise FileNotFoundError(f"there are no recordings in {folder}; give a folder with audio files")
    file = folder / ANALYSIS_FILE
    known = _read(file)
    now = {path: identity(path) for path in dict.fromkeys(row["path"] for row in rows)}
    written_ns = file.stat().st_mtime_ns if known else 0
    missing = [r for r in rows if not _is_current(known.get(r["file_name"]), r["path"], now, tracker, written_ns)]
    if missing:
        _check_writable(file)
        _end_last_line(file)
        with file.open("a", encoding="utf-8") as out:
            for row in tqdm(missing, unit="recording", desc="analysis", file=sys.stderr, mininterval=1.0):
                name, path = row["file_name"], row["path"]
                before = known.get(name, {})
                same_size = before.get("bytes") == path.stat().st_size and before["tracker"] in (tracker, FROM_SCORE)
                waveform, rate = read_audio(path)
                if same_size and before["digest"] == digest_of(waveform):
                    known[name] = before | {"identity": now[path]}
                else:
                    about = {"file_name": name, "bytes": path.stat().st_size, "identity": now[path]}
                    about |= {"group": collection.group(row), "key": row.get("key")}
                    known[name] = about | analyse(waveform, rate, tracker)
                out.write(json.dumps(known[name]) + "\n")
                out.flush()
    return [as_analysed(row["path"], known[row["file_name"]] | _told(collection, row)) for row in rows]


def digest_of(waveform: np.ndarray) -> str:
    """A digest of samples (L,): equal for exact duplicates."""
    return hashlib.sha256(np.ascontiguousarray(waveform, dtype="<f4").tobytes()).hexdigest()[:16]


def _told(collection: Collection, row: dict) -> dict:
    """The current metadata of a recording, which may have changed since it was analysed."""
    return {"group": collection.group(row)} | ({"key": row["key"]} if row.get("key") else {})


def _read(file: Path) -> dict[str, dict]:
    """The lines of an analysis by file name, later ones over earlier ones; a last line cut short is left out."""
    if not file.exists():
        return {}
    lines = read_lines(file)
    rows = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[row["file_name"]] = row
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            if number == len(lines) or not line.strip():
                continue
            raise ValueError(
                f"{file}, line {number}, is not a line of an analysis; remove the line or the file"
            ) from error
    return rows


def _check_writable(file: Path) -> None:
    """Raise PermissionError if the analysis ``file`` of a folder cannot be written."""
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise PermissionError(
            f"{file}, which stores the beats of the recordings, cannot be written; make {file.parent} writable, or run "
            f"`musicldm prepare {file.parent} --out DIR` and train with data=DIR"
        )


def _end_last_line(file: Path) -> None:
    """Remove an unfinished last line that a killed run left."""
    if file.exists() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        with file.open("r+b") as out:
            out.truncate(content.rfind(b"\n") + 1)


def _is_current(line: dict | None, path: Path, now: dict[Path, str], tracker: str, written_ns: int) -> bool:
    """Whether ``line`` is valid for the recording at ``path`` in its present state."""
    if line is None or line["tracker"] not in (tracker, FROM_SCORE):
        return False
    if "identity" in line:
        return line["identity"] == now[path]
    about = path.stat()
    return line["bytes"] == about.st_size and about.st_mtime_ns <= written_ns


def as_analysed(path: Path, row: dict) -> Analysed:
    """The recording at ``path`` from its line of analysis."""
    recording = Recording(
        name=row["file_name"],
        group=row["group"],
        duration_s=row["duration_s"],
        beats_s=np.array(row["beats_s"]),
        downbeats_s=np.array(row["downbeats_s"]),
        beats_per_bar=row["beats_per_bar"],
        tempo_bpm=row["tempo_bpm"],
        confidence=row["confidence"],
        key=row["key"],
    )
    return Analysed(path, recording, np.array(row["loudness_lufs"]), row["digest"])


UNMEASURED = {"duration_s": 0.0, "beats_s": [], "downbeats_s": [], "beats_per_bar": 0, "tempo_bpm": 0.0}
UNMEASURED |= {"confidence": 0.0, "loudness_lufs": []}


def unmeasured(folder: str | Path | Collection) -> list[Analysed]:
    """Every recording of ``folder`` with its group but without measurements, for mixing random pairs."""
    collection = as_collection(folder)
    if collection.in_shards:
        return analyse_collection(collection)
    return [
        as_analysed(
            row["path"],
            UNMEASURED
            | {"file_name": row["file_name"], "group": collection.group(row)}
            | {"key": row.get("key"), "digest": row["file_name"]},
        )
        for row in collection.rows
    ]
