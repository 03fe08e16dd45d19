"""Tempo for any weights: how often the piece has the tempo that was asked for.

prompt, BPM -> `Session` with a tempo | text to music with the tempo in its words -> piece -> two beat trackers
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from augment import track_beats
from benchmarks.editing import keep
from benchmarks.editing.edits import seed_of
from benchmarks.editing.pieces import Piece
from musicldm.editing.tempo import is_tempo
from musicldm.generate import Request, Session
from musicldm.generate.tempo import TempoError, stated

METHODS = ("ours", "words")
SLOWEST, FASTEST = 60.0, 180.0  # BPM
TRACKERS = ("madmom", "librosa")


def bpm_of(i: int, count: int) -> float:
    """The tempo of case i of ``count``, evenly spread in octaves."""
    return round(SLOWEST * (FASTEST / SLOWEST) ** ((i + 0.5) / count), 1)


def at_tempo(piece: Piece, bpm: float, method: str, session: Session, folder: Path) -> dict:
    """Music for the piece's prompt at ``bpm``: its tempo by each tracker; one that is refused has none."""
    name, seed = f"tempo/{piece.name}-{method}", seed_of("tempo", piece.name)

    def make() -> tuple[np.ndarray, dict]:
        if method == "ours":
            made = session.run(Request(piece.prompt, seed=seed, bpm=bpm))
            return made.waveform, {"tempo": made.recipe["tempo"], "tried": made.recipe["take"]["tried"]}
        return session.run(Request(stated(piece.prompt, bpm), seed=seed)).waveform, {}

    def measure() -> dict:
        try:
            waveform, told = keep.sound(folder / f"{name}-sound.flac", piece.rate, make)
        except TempoError as error:
            return {"asked_bpm": bpm, "made": False, "error": str(error)} | dict.fromkeys(TRACKERS, False)
        told |= {"asked_bpm": bpm, "made": True}
        for tracker in TRACKERS:
            found = track_beats(waveform, piece.rate, tracker).tempo_bpm
            told |= {f"{tracker}_bpm": found, tracker: found > 0 and bool(is_tempo(bpm, found))}
        return told

    return keep.numbers(folder / f"{name}.json", measure)
