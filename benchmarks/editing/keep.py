"""What a run has made already: numbers as JSON and sound as FLAC in the work folder, so that a stopped run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from musicldm.audio import read_audio, write_audio, write_whole

Made = tuple[np.ndarray, dict]  # a mono waveform (L,) and what is told of it


def numbers(path: Path, measure: Callable[[], dict]) -> dict:
    """What ``measure`` gives, kept in ``path``."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(measure()).encode())
    return json.loads(path.read_text())


def sound(path: Path, rate: int, make: Callable[[], Made]) -> Made:
    """What ``make`` gives, at ``rate`` Hz, kept in ``path`` (FLAC, 16 bits) and beside it; with the processor time."""
    about = path.with_suffix(".json")
    if not about.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        began = time.process_time()
        waveform, told = make()
        told["processor_s"] = time.process_time() - began
        write_audio(path, np.clip(waveform, -1, 1), rate)
        write_whole(about, json.dumps(told).encode())
    return read_audio(path)[0], json.loads(about.read_text())
