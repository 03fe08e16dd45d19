"""Loop points and tempo in WAV files for audio workstations: the chunks ``smpl`` and ``acid``.

    smpl   one forward loop over the whole file, and the MIDI note at which it plays unchanged
    acid   a loop that may be stretched: beats, meter, tempo

All numbers are little-endian. ``smpl`` (60 bytes here) is as published by Microsoft and IBM (Multimedia Programming
Interface and Data Specifications 1.0, 1991, revised 1994), its loop's last sample counted in. ``acid`` (24 bytes) is
Sonic Foundry's, unpublished, as libsndfile and others read it. FLAC files have no place for either.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from musicldm.audio.marks import append_chunk, chunks, kind_of

SMPL = struct.Struct("<9I")  # maker, product, nanoseconds a sample, unity note, its fraction, SMPTE 2, loops, data
SMPL_LOOP = struct.Struct("<6I")  # name, type, first sample, last sample, fraction, times (0: for ever)
ACID = struct.Struct("<IHHfIHHf")  # flags, root note, 0x8000, 0, beats, meter's denominator and numerator, tempo
ONE_SHOT, ROOT_NOTE, STRETCH = 1, 2, 4  # flags of acid
MIDDLE_C = 60
UNKNOWN = 0x8000  # constant in every acid chunk


@dataclass(frozen=True)
class Loop:
    """A file that loops as a whole; ``beats`` is 0 if the tempo is not known."""

    beats: int = 0
    numerator: int = 4  # of the meter
    denominator: int = 4  # of the meter; its notes are the beats
    bpm: float = 0.0  # beats a minute


@dataclass(frozen=True)
class Looped:
    """Loop information of a WAV file; None where it is missing."""

    first_sample: int | None  # of the smpl chunk's first loop
    last_sample: int | None  # counted in
    unity_note: int | None  # MIDI, 60 is middle C
    loop: Loop | None  # of the acid chunk; None for a one-shot too
    stretches: bool  # whether the acid chunk asks for stretching to the project's tempo


def add_loop(file: BinaryIO, loop: Loop, n_samples: int, sample_rate: int) -> None:
    """Append the chunks of ``loop`` to ``file``, a complete WAV file of ``n_samples`` per channel.

    ``file`` is open for reading and writing. Without beats there is no acid chunk.

    Raises:
        ValueError: if ``file`` is not a WAV file.
    """
    if kind_of(file) not in ("RIFF", "RF64"):
        raise ValueError("only WAV files have a place for loop points; write WAV")
    head = SMPL.pack(0, 0, round(1e9 / sample_rate), MIDDLE_C, 0, 0, 0, 1, 0)
    append_chunk(file, b"smpl", head + SMPL_LOOP.pack(0, 0, 0, n_samples - 1, 0, 0))
    if loop.beats:
        meter = loop.denominator, loop.numerator
        append_chunk(file, b"acid", ACID.pack(STRETCH, MIDDLE_C, UNKNOWN, 0.0, loop.beats, *meter, loop.bpm))


def read_loop(path: str | Path) -> Looped | None:
    """Loop information of the WAV file ``path``, by any program; None if it has neither chunk.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a chunk is too short.
    """
    found: dict[bytes, bytes] = {}
    with Path(path).open("rb") as file:
        if kind_of(file) in ("RIFF", "RF64"):
            for name, size in chunks(file):
                if name in (b"smpl", b"acid"):
                    found.setdefault(name, file.read(size))
    if not found:
        return None
    first = last = note = loop = None
    stretches = False
    if (content := found.get(b"smpl")) is not None:
        head = _unpacked(SMPL, content, path, "smpl")
        note = head[3]
        if head[7]:
            first, last = _unpacked(SMPL_LOOP, content[SMPL.size :], path, "smpl")[2:4]
    if (content := found.get(b"acid")) is not None:
        flags, _, _, _, beats, denominator, numerator, bpm = _unpacked(ACID, content, path, "acid")
        stretches = bool(flags & STRETCH)
        loop = None if flags & ONE_SHOT else Loop(beats, numerator, denominator, bpm)
    return Looped(first, last, note, loop, stretches)


def _unpacked(layout: struct.Struct, content: bytes, path: str | Path, name: str) -> tuple:
    if len(content) < layout.size:
        raise ValueError(f"{path} is damaged: its {name} chunk ends after {len(content)} bytes")
    return layout.unpack(content[: layout.size])
