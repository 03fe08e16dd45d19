"""Beats of results, measured when they are asked for and kept beside the index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel

from augment import track_beats
from musicldm.audio import read_audio, write_whole

LONGEST_S = 900.0  # what is longer has no grid: it would take minutes


class Rhythm(BaseModel):
    """Beats of a recording, in seconds from its first sample."""

    times_s: list[float]
    downbeats_s: list[float]
    tempo_bpm: float
    tracker: str


def tracker() -> str:
    """The better beat tracker that is installed."""
    try:
        import madmom  # noqa: F401
    except ImportError:
        return "librosa"
    return "madmom"


def rhythm(path: Path, kept: Path) -> Rhythm:
    """The beats of the audio file ``path``, read from the file ``kept`` or measured and kept there.

    Raises:
        OSError, ValueError: if the audio cannot be read, or is longer than `LONGEST_S`.
    """
    if kept.is_file():
        return Rhythm.model_validate_json(kept.read_text(encoding="utf-8"))
    waveform, rate = read_audio(path)
    if len(waveform) > LONGEST_S * rate:
        raise ValueError(f"beats are found in up to {LONGEST_S:g} s, this lasts {len(waveform) / rate:.0f} s")
    name = tracker()
    beats = track_beats(np.clip(waveform, -1, 1), rate, name)
    found = Rhythm(
        times_s=beats.times_s.tolist(),
        downbeats_s=beats.downbeats_s.tolist(),
        tempo_bpm=beats.tempo_bpm,
        tracker=name,
    )
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, found.model_dump_json().encode())
    return found
