"""Scores whose beats are known: a band in 3/4 or 4/4, at any tempo, with swing, tempo steps and pick-up bars."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import mido
import numpy as np

from musicldm.scores.reading import read_score
from musicldm.scores.synthesis import Effects, synthesize

TICKS = 480  # a beat
KICK, SNARE, HAT, RIDE = 36, 38, 42, 51


class Piece(NamedTuple):
    """What to write."""

    bpm: float
    beats_per_bar: int = 4
    pickup: int = 0  # beats before the first downbeat
    swing: float = 0.5  # where the off-beat lies within the beat; 0.67 is triplet swing
    second_bpm: float | None = None  # tempo from the middle on
    seed: int = 0  # of harmony, instruments and rhythm


class Rendered(NamedTuple):
    """What it sounds like, and where its beats are."""

    waveform: np.ndarray  # (L,)
    beats_s: np.ndarray  # (N,)
    downbeats_s: np.ndarray  # (M,)


def beat_times(piece: Piece, seconds: float) -> np.ndarray:
    """Seconds (N,) of the beats of ``piece``, which begins with a beat."""
    first = np.arange(0, seconds, 60 / piece.bpm)
    if piece.second_bpm is None:
        return first
    first = first[first < seconds / 2]
    at = first[-1] + 60 / piece.bpm
    return np.concatenate([first, np.arange(at, seconds, 60 / piece.second_bpm)])


def write_piece(piece: Piece, seconds: float, path: Path) -> np.ndarray:
    """Write ``piece`` as MIDI; returns its beats (N,) in seconds."""
    rng = np.random.default_rng(piece.seed)
    times = beat_times(piece, seconds)
    bass, lead, pad = int(rng.choice([32, 33, 34, 36])), int(rng.choice([0, 4, 11, 24, 25, 56, 65, 73])), 48
    root = int(rng.integers(36, 48))
    progression = [(0, 5, 7, 0), (0, 9, 5, 7), (0, 7, 9, 5), (2, 7, 0, 0)][rng.integers(4)]
    events = [(0.0, mido.Message("program_change", channel=c, program=p)) for c, p in ((0, pad), (1, bass), (2, lead))]
    for change in {0: piece.bpm}, {int(np.sum(times < seconds / 2)): piece.second_bpm}:
        for beat, bpm in change.items():
            if bpm is not None:
                events.append((float(beat), mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(bpm))))

    def note(start: float, length: float, pitch: int, channel: int, velocity: int) -> None:
        events.append((start, mido.Message("note_on", note=pitch, channel=channel, velocity=velocity)))
        events.append((start + length, mido.Message("note_off", note=pitch, channel=channel)))

    ride = int(rng.choice([HAT, RIDE]))
    for beat in range(len(times)):
        bar, place = divmod(beat - piece.pickup, piece.beats_per_bar)
        harmony = root + progression[bar % 4]
        note(beat, 0.2, ride, 9, 80)
        note(beat + piece.swing, 0.2, ride, 9, 60)
        if place == 0:
            note(beat, 0.2, KICK, 9, 120)
            for step in (0, 4, 7):
                note(beat, 0.95 * piece.beats_per_bar, harmony + 24 + step, 0, 75)
        elif piece.beats_per_bar == 4 and place == 2:
            note(beat, 0.2, KICK, 9, 95)
        else:
            note(beat, 0.2, SNARE, 9, 95 if piece.beats_per_bar == 4 else 70)
        if place in (0, 2):
            note(beat, 0.9, harmony + (0 if place == 0 else 7), 1, 110 if place == 0 else 90)
        note(beat, 0.45, harmony + 36 + int(rng.choice([0, 4, 7, 12])), 2, 95 if place == 0 else 80)
        if rng.random() < 0.4:
            note(beat + piece.swing, 0.3, harmony + 36 + int(rng.choice([2, 4, 7])), 2, 70)
    midi = mido.MidiFile(ticks_per_beat=TICKS)
    track, last = midi.add_track(), 0
    for at, message in sorted(events, key=lambda event: (event[0], event[1].type != "note_off")):
        track.append(message.copy(time=round(at * TICKS) - last))
        last = round(at * TICKS)
    midi.save(path)
    return times


def render_piece(piece: Piece, seconds: float, soundfont: Path, folder: Path, sample_rate: int = 16_000) -> Rendered:
    """Play ``piece`` for ``seconds`` with FluidSynth and a General MIDI ``soundfont``; scratch files in ``folder``."""
    path = folder / "piece.mid"
    times = write_piece(piece, seconds, path)
    (stereo,) = synthesize(read_score(path), [(0.0, seconds)], soundfont, sample_rate=sample_rate, effects=Effects())
    waveform = (stereo.mean(axis=1) * (0.7 / np.abs(stereo).max())).astype(np.float32)
    return Rendered(waveform, times, times[piece.pickup :: piece.beats_per_bar])
