"""Training sets for `recipes.mixup_experiment.run`: a draw of rendered clips, with the beats that their scores have.

    rendered folder + scores -> N clips of as many pieces as there are -> metadata.jsonl, analysis.jsonl

The beats of a rendering are known: those of its score's tempo map and time signatures, moved and stretched as the
rendering was. Clips whose tempo is not steady, or not to be trusted, get none, and so find no partner.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from augment.mixup import block_loudness
from musicldm.audio import read_audio, write_whole
from musicldm.data.analysis import ANALYSIS_FILE, FROM_SCORE
from musicldm.data.metadata import metadata_rows
from musicldm.scores.reading import Score, read_score

NEAR = 0.01  # by how much of itself a tempo may differ from the caption's


def score_beats(score: Score, row: dict) -> tuple[np.ndarray, np.ndarray, int]:
    """Beats (N,) and downbeats (M,) in seconds of the clip that ``row`` of metadata.jsonl describes, and beats a bar.

    None of either if the clip has no one tempo and metre, or the score's tempo map says another tempo than the row.
    """
    nothing = np.empty(0), np.empty(0), 0
    start_s, factor = row["start_s"] * row["tempo_factor"], row["tempo_factor"]  # in the score's own time
    end_s = start_s + row["duration_s"] * factor
    if not row["tempo_bpm"]:
        return nothing
    changes = [(0.0, 120.0), *(tuple(change) for change in score.tempos)]
    seconds = np.array([time for time, _ in changes] + [max(end_s, changes[-1][0]) + 60.0])
    quarters = np.concatenate([[0.0], np.cumsum(np.diff(seconds) / 60 * [qpm for _, qpm in changes])])
    unit = row["quarter_notes_per_min"] / row["tempo_bpm"]  # quarter notes in a beat
    beats, downbeats, counts = [], [], set()
    metres = [(0.0, 4, 4), *score.metres]
    for (begin_s, count, of), (next_s, *_) in zip(metres, [*metres[1:], (seconds[-1],)], strict=True):
        begin, end = np.interp([begin_s, min(next_s, seconds[-1])], seconds, quarters)
        bar = 4 * count / of
        if next_s <= start_s or begin_s >= end_s or end <= begin:
            continue
        counts.add(bar / unit)
        bars = np.arange(begin, end - 1e-6, bar)
        downbeats.append(bars)
        beats.append(np.concatenate([bars + k * unit for k in range(round(bar / unit))]))
        beats[-1] = np.sort(beats[-1][beats[-1] < end - 1e-6])
    beats_s, downbeats_s = (
        (np.interp(np.concatenate(some), quarters, seconds) - start_s) / factor for some in (beats, downbeats)
    )
    beats_s, downbeats_s = (some[(some >= 0) & (some < row["duration_s"])] for some in (beats_s, downbeats_s))
    if len(counts) != 1 or len(beats_s) < 2 or abs((count := counts.pop()) - round(count)) > 1e-6:
        return nothing
    if abs(60 / np.median(np.diff(beats_s)) / row["tempo_bpm"] - 1) > NEAR:
        return nothing
    return beats_s, downbeats_s, round(count)


def draw_rows(folder: Path, count: int, split: str | None = None) -> list[dict]:
    """``count`` rows of ``folder`` in an order fixed by their names: one of each piece, then a second one, and so on.

    Of one ``split`` only, if one is named.
    """

    def place(name: str) -> bytes:
        return hashlib.sha256(f"experiment {name}".encode()).digest()

    pieces = defaultdict(list)
    for row in metadata_rows(folder):
        if split in (None, row["split"]):
            pieces[row["piece_id"]].append(row)
    for rows in pieces.values():
        rows.sort(key=lambda row: place(row["file_name"]))
    turns = sorted((i, place(piece), row["file_name"]) for piece in pieces for i, row in enumerate(pieces[piece]))
    by_name = {row["file_name"]: row for rows in pieces.values() for row in rows}
    if len(turns) < count:
        raise ValueError(f"{folder} holds {len(turns)} clips{f' for {split}' if split else ''}, {count} were asked for")
    return [by_name[name] for _, _, name in turns[:count]]


def write_set(rows: list[dict], source: Path, out: Path) -> None:
    """Add ``rows`` of the folder ``source`` to the audio folder ``out``; the recordings stay where they are."""
    lines = [json.dumps(row | {"file_name": str(source.resolve() / row["file_name"])}) for row in rows]
    before = (out / "metadata.jsonl").read_bytes() if (out / "metadata.jsonl").is_file() else b""
    write_whole(out / "metadata.jsonl", before + "".join(line + "\n" for line in lines).encode())


def write_analysis(folder: Path, scores: Path) -> dict:
    """``analysis.jsonl`` of ``folder``, with beats from the MIDI files in ``scores``; how many of train have some."""
    lines, timed, before = [], 0, (None, None)
    for row in tqdm(sorted(metadata_rows(folder), key=lambda row: row["score"]), desc="beats of scores", unit="clip"):
        if row["score"] != before[0]:
            before = row["score"], read_score(scores / row["score"])
        beats_s, downbeats_s, count = score_beats(before[1], row)
        path = Path(row["file_name"])
        waveform, rate = read_audio(path)
        timed += row["split"] == "train" and bool(len(downbeats_s))
        line = {
            "file_name": row["file_name"],
            "bytes": path.stat().st_size,
            "group": row["piece_id"],
            "key": row["key"],
            "digest": hashlib.sha256(np.ascontiguousarray(waveform, "<f4").tobytes()).hexdigest()[:16],
            "duration_s": round(len(waveform) / rate, 4),
            "tracker": FROM_SCORE,
            "beats_s": np.round(beats_s, 4).tolist(),
            "downbeats_s": np.round(downbeats_s, 4).tolist(),
            "beats_per_bar": count,
            "tempo_bpm": row["tempo_bpm"] if len(beats_s) else 0.0,
            "confidence": float(bool(len(beats_s))),
            "loudness_lufs": [round(float(value), 2) for value in block_loudness(waveform, rate)],
        }
        lines.append(json.dumps(line) + "\n")
    write_whole(folder / ANALYSIS_FILE, "".join(lines).encode())
    return {"with_beats": timed}
