"""What is asked for beside the text, made as users make it: a click, chord symbols, a whistled melody, a MIDI file.

Piece -> what `musicldm.pipelines` takes as a context
"""

from __future__ import annotations

from collections.abc import Callable

import mido
import numpy as np

from benchmarks.control import truth
from benchmarks.control.pieces import SECONDS, Piece
from musicldm.scores.general_midi import DRUM_CHANNEL
from musicldm.scores.reading import Score
from musicldm.scores.sketch_sound import Timbre
from musicldm.scores.sketches import Sketch
from recipes.mini.phrases import PIECES

SLOWEST, FASTEST = 60.0, 180.0  # BPM
GOLDEN = (5**0.5 - 1) / 2
WHISTLE = Timbre(partials=(1.0, 0.15), attack_s=0.03, release_s=0.04, decay_per_s=0.0)
WHISTLE_RATE = 16_000


def tempo_of(i: int) -> int:
    """BPM of the i-th case; any number of first cases is spread evenly in octaves."""
    return round(SLOWEST * (FASTEST / SLOWEST) ** ((0.5 + i * GOLDEN) % 1))


def tempo_prompt(i: int, bpm: float) -> str:
    """A band with drums, and its tempo in words, as where the bundled model's card measures tempo by words alone."""
    return f"{PIECES[i % len(PIECES)]} and drums, {bpm} BPM"


def click(bpm: float) -> Sketch:
    return Sketch.click(bpm, seconds=SECONDS)


def chords(piece: Piece) -> Sketch:
    """Chord symbols; of the first bar what lies in the clip."""
    asked = truth.chords(piece)
    before_s = max(-float(asked.intervals[0, 0]), 0.0)
    sketch = Sketch.from_chords(asked.text, asked.bpm, asked.meter)
    return sketch.cut(before_s, min(before_s + SECONDS, sketch.seconds))


def melody(piece: Piece) -> Sketch:
    """The melody, whistled, and heard again by pYIN."""
    notes, _ = truth.melody(piece)
    tune = Sketch(Score(notes, [], np.empty((0, 2)), [], []), np.empty((0, 2)), SECONDS)
    return Sketch.from_melody(tune.render(WHISTLE_RATE, timbre=WHISTLE), WHISTLE_RATE)


def notes(piece: Piece) -> Sketch:
    return Sketch.from_midi(piece.midi)


def drums(piece: Piece) -> Sketch:
    return Sketch.from_midi(piece.midi, tracks(piece, drums=True))


def tracks(piece: Piece, drums: bool) -> list[int]:
    """Numbers of the tracks of drums, or of all others, counted as `Sketch.from_midi` does."""
    played = [[m.channel for m in track if m.type == "note_on"] for track in mido.MidiFile(piece.midi).tracks]
    channels = [track[0] for track in played if track]
    return [i for i, channel in enumerate(channels, 1) if (channel == DRUM_CHANNEL) == drums]


ASKED: dict[str, Callable[[Piece], Sketch]] = {"chords": chords, "melody": melody, "notes": notes, "drums": drums}
