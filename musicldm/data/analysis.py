"""What mixing needs to know of the recordings of a collection, measured once and kept beside them.

    recording  ->  beats, loudness  ->  one line of FOLDER/analysis.jsonl

Each line is a JSON object:

    file_name       relative to the folder, as in metadata.jsonl
    bytes           size of the file when it was analysed; another size makes the line stale
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
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from augment.beats import track_beats
from augment.mixup import block_loudness
from augment.pairing import Recording
from musicldm.audio import read_audio
from musicldm.data.collection import metadata_rows
from musicldm.data.shards import INDEX_FILE, index_rows

ANALYSIS_FILE = "analysis.jsonl"
FROM_SCORE = "score"  # in place of a tracker


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
        "digest": hashlib.sha256(np.ascontiguousarray(waveform, dtype="<f4").tobytes()).hexdigest()[:16],
        "duration_s": round(len(waveform) / sample_rate, 4),
        "tracker": tracker,
        "beats_s": [round(float(time_s), 4) for time_s in beats.times_s],
        "downbeats_s": [round(float(time_s), 4) for time_s in beats.downbeats_s],
        "beats_per_bar": beats.beats_per_bar,
        "tempo_bpm": round(beats.tempo_bpm, 3),
        "confidence": round(beats.confidence, 4),
        "loudness_lufs": [round(float(value), 2) for value in block_loudness(waveform, sample_rate)],
    }


def analyse_collection(folder: str | Path, tracker: str = "madmom") -> list[Analysed]:
    """The analysis of every recording of ``folder``; what is missing or stale is measured and added to its file.

    That of a folder that `musicldm prepare` made is in its index, whichever tracker it was.

    Each line is written as soon as it is known, so a stopped run loses at most one recording's work.

    Raises:
        FileNotFoundError: no folder, or no recordings in it.
        ValueError: a recording that cannot be read, or a line that is not JSON.
    """
    folder = Path(folder)
    if (folder / INDEX_FILE).is_file():
        return [
            as_analysed(row["path"], row | {"loudness_lufs": row["block_loudness_lufs"]}) for row in index_rows(folder)
        ]
    file = folder / ANALYSIS_FILE
    metadata = metadata_rows(folder)
    if not metadata:
        raise FileNotFoundError(f"no recordings in {folder}")
    known = _read(file)
    missing = [row for row in metadata if not _is_current(known.get(row["file_name"]), folder, tracker)]
    if missing:
        _end_last_line(file)
        with file.open("a", encoding="utf-8") as out:
            for row in tqdm(missing, unit="recording", desc="analysis", file=sys.stderr, mininterval=1.0):
                name = row["file_name"]
                about = {
                    "file_name": name,
                    "bytes": (folder / name).stat().st_size,
                    "group": str(row.get("piece_id") or name),
                    "key": row.get("key"),
                }
                known[name] = about | analyse(*read_audio(folder / name), tracker)
                out.write(json.dumps(known[name]) + "\n")
                out.flush()
    return [as_analysed(folder / row["file_name"], known[row["file_name"]]) for row in metadata]


def _read(file: Path) -> dict[str, dict]:
    """The lines of an analysis by file name, later ones over earlier ones; a last line cut short is left out."""
    if not file.exists():
        return {}
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows[row["file_name"]] = row
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            if number == len(lines) or not line.strip():
                continue
            raise ValueError(
                f"{file}, line {number}, is no line of an analysis: remove the line or the file"
            ) from error
    return rows


def _end_last_line(file: Path) -> None:
    """Cut off a last line that a killed run left unfinished."""
    if file.exists() and (content := file.read_bytes()) and not content.endswith(b"\n"):
        with file.open("r+b") as out:
            out.truncate(content.rfind(b"\n") + 1)


def _is_current(row: dict | None, folder: Path, tracker: str) -> bool:
    return (
        row is not None
        and row["tracker"] in (tracker, FROM_SCORE)
        and row["bytes"] == (folder / row["file_name"]).stat().st_size
    )


def as_analysed(path: Path, row: dict) -> Analysed:
    """The recording at ``path`` from its line of analysis."""
    recording = Recording(
        row["file_name"],
        row["group"],
        row["duration_s"],
        np.array(row["beats_s"]),
        np.array(row["downbeats_s"]),
        row["beats_per_bar"],
        row["tempo_bpm"],
        row["confidence"],
        row["key"],
    )
    return Analysed(path, recording, np.array(row["loudness_lufs"]), row["digest"])


def unmeasured(folder: str | Path) -> list[Analysed]:
    """Every recording of ``folder`` with its group and nothing measured: what mixing random pairs needs."""
    folder, nothing = Path(folder), np.empty(0)
    if (folder / INDEX_FILE).is_file():
        return analyse_collection(folder)
    return [
        Analysed(
            folder / row["file_name"],
            Recording(
                row["file_name"],
                str(row.get("piece_id") or row["file_name"]),
                0.0,
                nothing,
                nothing,
                0,
                0.0,
                0.0,
                row.get("key"),
            ),
            nothing,
            row["file_name"],
        )
        for row in metadata_rows(folder)
    ]
