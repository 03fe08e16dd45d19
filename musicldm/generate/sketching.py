"""A sketch of several parts, as commands and the server are asked for it: a MIDI file, chords, a melody.

Parts, tempo, metre -> `gather` -> Sketch, with all of them together from its first sample on
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

from musicldm.audio import read_audio
from musicldm.generate.metre import METER, RELEASE_S, bars_s, check_bpm
from musicldm.scores.sketches import Rhythm, Sketch

CHORDS_BPM = 120.0  # where none is given


@dataclass(frozen=True)
class Parts:
    """What a sketch is made of.

    Raises:
        ValueError: for tracks without a MIDI file, or a rhythm without chords.
    """

    midi: Path | None = None
    tracks: Sequence[int] | None = None  # of the MIDI file, counted from 1; None: all
    chords: str | None = None
    rhythm: Rhythm | None = None  # of the chords
    melody: Path | None = None  # a recording of one voice

    def __post_init__(self):
        for name, other in (("tracks", "midi"), ("rhythm", "chords")):
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise ValueError(
                    f"{name} (--{name}) needs {other} (--{other}), which is not given; give it, or leave {name} out"
                )


def gather(parts: Parts, bpm: float | None = None, meter: str | None = None) -> Sketch | None:
    """The sketch of ``parts``, whose chords have ``bpm`` beats of ``meter`` a minute; None if there are none.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if it holds no notes or no pitch, or something is no chord, tempo or metre.
    """
    made = []
    if parts.midi is not None:
        made.append(Sketch.from_midi(parts.midi, None if parts.tracks is None else tuple(parts.tracks)))
    if parts.chords is not None:
        if bpm is not None:
            check_bpm(bpm)
        tempo, metre = CHORDS_BPM if bpm is None else bpm, METER if meter is None else meter
        made.append(Sketch.from_chords(parts.chords, tempo, metre, parts.rhythm or "block"))
    if parts.melody is not None:
        waveform, rate = read_audio(parts.melody)
        try:
            made.append(Sketch.from_melody(waveform, rate))
        except ValueError as error:
            raise ValueError(f"{parts.melody}: {error}") from error
    return reduce(add, made) if made else None


def whole_bars(sketch: Sketch, bpm: float, meter: str | None) -> int:
    """How many bars of ``bpm`` beats of ``meter`` a minute hold ``sketch``."""
    check_bpm(bpm)
    return max(1, math.ceil((sketch.seconds - RELEASE_S) / bars_s(bpm, 1, meter)))
