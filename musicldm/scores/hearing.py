"""Whether a sketch can be heard by a model: what its front end and its VAE cannot tell is refused beforehand.

Sketch, mel parameters  ->  nothing, or one line that says which note, how many at once, and what can be
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from musicldm.scores.general_midi import DRUM_CHANNEL
from musicldm.scores.sketch_sound import HIGHEST
from musicldm.scores.sketches import Sketch

if TYPE_CHECKING:
    from vocoder import MelConfig

NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MOST_FRAMES = 0.75  # of a second's mel frames in which notes begin: closer together they are no longer told apart
BANDS_A_PITCH = 2  # mel bands that a pitch needs beside others that sound at once


def check_audible(sketch: Sketch, mel: MelConfig) -> None:
    """ValueError if ``sketch`` is silent, or too high or too dense to be heard in log-mel spectrograms of ``mel``.

    Too high: a note whose fundamental lies above the bands, or the partials that a sketch has. Too dense: within one
    second notes begin in more than three quarters of the frames, or more pitches sound at once than half of the bands.
    """
    if not len(sketch.notes) and not len(sketch.clicks):
        raise ValueError("the sketch is silent: it has no notes and no clicks; give it some")
    pitched = sketch.notes[sketch.notes["channel"] != DRUM_CHANNEL]
    highest_hz = min(mel.f_max, HIGHEST * mel.sample_rate)
    if len(pitched) and (frequency := _hertz(top := int(pitched["pitch"].max()))) > highest_hz:
        over = int(np.ceil(12 * np.log2(frequency / highest_hz)))
        raise ValueError(
            f"the score is too high: {note_name(top)} at {pitched['start_s'][pitched['pitch'].argmax()]:.2f} s has "
            f"{frequency:.0f} Hz, and the model hears notes up to {highest_hz:.0f} Hz; transpose it down by {over} "
            f"semitone{'s' if over > 1 else ''}, or leave the highest notes out"
        )
    hop_s = mel.hop_length / mel.sample_rate
    most, at_s = _most_onsets(sketch, hop_s)
    if most > (limit := int(MOST_FRAMES / hop_s)):
        raise ValueError(
            f"the score is too dense: from {at_s:.2f} s on notes begin at {most} different times within a second, and "
            f"the model can tell {limit} apart; thin it out, or play it slower"
        )
    most, at_s = _most_at_once(pitched)
    if most > (limit := mel.n_mels // BANDS_A_PITCH):
        raise ValueError(
            f"the score is too dense: {most} pitches sound at once at {at_s:.2f} s, and the model can tell {limit} "
            "apart; leave some of them out"
        )


def note_name(pitch: int) -> str:
    """Of a MIDI ``pitch``: 60 is C4."""
    return f"{NAMES[pitch % 12]}{pitch // 12 - 1}"


def _hertz(pitch: int) -> float:
    return 440.0 * 2 ** ((pitch - 69) / 12)


def _most_onsets(sketch: Sketch, hop_s: float) -> tuple[int, float]:
    """In how many frames of ``hop_s`` notes or clicks begin within any one second at most, and from when on."""
    times = np.concatenate([sketch.notes["start_s"], sketch.clicks[:, 0]])
    frames = np.unique(np.floor(times / hop_s + 1e-6))
    counts = np.searchsorted(frames, frames + 1 / hop_s - 1e-6) - np.arange(len(frames))
    first = int(counts.argmax())
    return int(counts[first]), float(frames[first] * hop_s)


def _most_at_once(notes: np.ndarray) -> tuple[int, float]:
    """How many different pitches sound at once at most, and when."""
    events = [(note["start_s"], 1, int(note["pitch"])) for note in notes]
    events += [(note["end_s"], -1, int(note["pitch"])) for note in notes]
    sounding = [0] * 128
    at_once, most, at_s = 0, 0, 0.0
    for time_s, change, pitch in sorted(events):  # ends come before beginnings of the same moment
        sounding[pitch] += change
        at_once += (change == 1 and sounding[pitch] == 1) - (change == -1 and sounding[pitch] == 0)
        if at_once > most:
            most, at_s = at_once, float(time_s)
    return most, at_s
