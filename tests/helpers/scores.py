"""Small scores for the tests, written with mido, and the synthesizer that plays them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mido
import pytest

from musicldm.scores.synthesis import check_backend, find_soundfont
from tests.helpers.soundfont import write_soundfont

TICKS = 480  # a quarter note


def write_score(
    path: Path,
    notes: list[tuple],
    *,
    programs: dict[int, int] | None = None,
    bpm: float | None = 120.0,
    metre: tuple[int, int] | None = (4, 4),
    key: str | None = None,
    others: list[tuple[float, mido.Message | mido.MetaMessage]] = (),
) -> Path:
    """Write ``notes`` (start and length in quarter notes, pitch, channel[, velocity]) as a MIDI file."""
    events = [(0.0, 0, mido.Message("program_change", channel=c, program=p)) for c, p in (programs or {}).items()]
    for start, length, pitch, channel, *velocity in notes:
        on = mido.Message("note_on", note=pitch, channel=channel, velocity=velocity[0] if velocity else 100)
        events += [(start, 2, on), (start + length, 1, mido.Message("note_off", note=pitch, channel=channel))]
    events += [(at, 0, message) for at, message in others]
    if bpm is not None:
        events.append((0.0, 0, mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(bpm))))
    if metre is not None:
        events.append((0.0, 0, mido.MetaMessage("time_signature", numerator=metre[0], denominator=metre[1])))
    if key is not None:
        events.append((0.0, 0, mido.MetaMessage("key_signature", key=key)))
    midi = mido.MidiFile(ticks_per_beat=TICKS)
    track = midi.add_track()
    last = 0
    for at, _, message in sorted(events, key=lambda event: event[:2]):
        track.append(message.copy(time=round(at * TICKS) - last))
        last = round(at * TICKS)
    path.parent.mkdir(parents=True, exist_ok=True)
    midi.save(path)
    return path


def band(path: Path, beats: int = 48) -> Path:
    """Piano chords, a bass, a flute and drums in C major, 120 BPM, 4/4."""
    chords = [(0, 4, 7), (5, 9, 12), (7, 11, 14), (0, 4, 7)]
    notes = []
    for bar in range(beats // 4):
        chord, at = chords[bar % 4], bar * 4
        notes += [(at + 2 * half, 1.9, 60 + note, 0) for half in range(2) for note in chord]
        notes += [(at + beat, 0.9, 36 + chord[0], 1) for beat in range(4)]
        notes += [(at + beat / 2, 0.45, 72 + chord[beat % 3], 2) for beat in range(8)]
        notes += [(at + beat, 0.1, 36 if beat % 2 == 0 else 38, 9) for beat in range(4)]
    return write_score(path, notes, programs={0: 0, 1: 32, 2: 73}, key="C")


class Synthesizer(NamedTuple):
    """What plays the scores of the tests."""

    backend: str
    soundfont: str


def lacking(check: Callable, *arguments) -> str | None:
    """What ``check`` says is not installed."""
    try:
        check(*arguments)
    except (FileNotFoundError, ImportError) as error:
        return str(error)
    return None


def system_soundfont() -> str:
    """The system's SoundFont, the small one if there are several."""
    found = find_soundfont()
    small = found.with_name("TimGM6mb.sf2")
    return str(small if small.is_file() else found)


def needs(reason: str | None) -> None:
    """Skip the test for ``reason``, if any; fail where MUSICLDM_SHARED says that everything should be there."""
    if reason and os.environ.get("MUSICLDM_SHARED"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def small_soundfont(tmp_path_factory) -> str:
    """One that is written here."""
    return str(write_soundfont(tmp_path_factory.mktemp("soundfont") / "small.sf2"))


@pytest.fixture(scope="session")
def synthesizer(small_soundfont) -> Synthesizer:
    """FluidSynth and the system's SoundFont; where one of them is missing, tinysoundfont and the small one."""
    if lacking(check_backend, "fluidsynth") or lacking(find_soundfont):
        return Synthesizer("tinysoundfont", small_soundfont)
    return Synthesizer("fluidsynth", system_soundfont())
