"""The plain sound of a sketch: additive tones for notes, bursts for drums, short beeps for beats.

    notes (N,), clicks (M, 2)  -> render ->  waveform (L,), or (A, L) with the same in each channel

Nothing of it is random: the noise of a drum is always the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from musicldm.scores.general_midi import DRUM_CHANNEL

PEAK = 0.5  # of what is rendered, relative to full scale
HIGHEST = 0.45  # of the rate: partials above are left out
KICKS, TOMS = (35, 36), (41, 43, 45, 47, 48, 50)
CYMBALS = (42, 44, 46, 49, 51, 52, 53, 54, 55, 57, 59, 69, 70, 82)  # and all other metal that is struck or shaken
CLICK_HZ, DOWNBEAT_HZ = 1200.0, 1800.0
BLOCK = 1024  # samples
DRUM_LEVEL, TONE_LEVEL, CLICK_LEVEL = 0.3, 0.1, 0.3


@dataclass(frozen=True)
class Timbre:
    """How a note sounds."""

    partials: tuple[float, ...] = (1.0, 0.4, 0.2, 0.1)  # amplitudes of the multiples of its frequency
    attack_s: float = 0.005
    release_s: float = 0.01
    decay_per_s: float = 0.8  # of the amplitude's natural logarithm


PLAIN = Timbre()


def render_sketch(
    notes: np.ndarray, clicks: np.ndarray, seconds: float, rate: int, channels: int = 1, timbre: Timbre = PLAIN
) -> np.ndarray:
    """Waveform (L,) float32, or (A, L) for several ``channels``, of L = seconds * rate samples, with a peak of `PEAK`.

    ``notes`` are of `musicldm.scores.reading.NOTE`; ``clicks (M, 2)`` have a time in seconds, and 1 for a downbeat.
    """
    length = round(seconds * rate)
    waveform = np.zeros(length, np.float64)
    drums = notes["channel"] == DRUM_CHANNEL
    gains = notes["velocity"] / 127 * np.maximum(notes["level"], 0.1)
    for note, gain in zip(notes[drums], gains[drums], strict=True):
        _add(waveform, DRUM_LEVEL * gain * drum(int(note["pitch"]), rate), round(note["start_s"] * rate))
    for pitch in np.unique(notes["pitch"][~drums]).tolist():
        chosen = ~drums & (notes["pitch"] == pitch)
        starts, ends = notes["start_s"][chosen], notes["end_s"][chosen]
        lengths = [_length(seconds, rate, timbre) for seconds in (ends - starts).tolist()]
        waves = _waves(pitch, max(lengths), rate, timbre)
        for start_s, n, gain in zip(starts.tolist(), lengths, gains[chosen].tolist(), strict=True):
            _add(waveform, _edged(TONE_LEVEL * gain * waves[:n], rate, timbre), round(start_s * rate))
    for time_s, is_downbeat in clicks:
        _add(waveform, CLICK_LEVEL * click(bool(is_downbeat), rate), round(time_s * rate))
    peak = np.abs(waveform).max(initial=0.0)
    waveform = (waveform * (PEAK / peak if peak > 0 else 1.0)).astype(np.float32)
    return waveform if channels == 1 else np.repeat(waveform[None], channels, axis=0)


def _add(waveform: np.ndarray, sound: np.ndarray, at: int) -> None:
    """Add what of ``sound``, from sample ``at``, lies within ``waveform``."""
    first, end = max(at, 0), min(at + len(sound), len(waveform))
    if end > first:
        waveform[first:end] += sound[first - at : end - at]


def tone(seconds: float, pitch: int, rate: int, timbre: Timbre = PLAIN) -> np.ndarray:
    """A note of MIDI ``pitch``: harmonic partials below `HIGHEST` of the rate, fading; (L,)."""
    return _edged(_waves(pitch, _length(seconds, rate, timbre), rate, timbre), rate, timbre)


def _length(seconds: float, rate: int, timbre: Timbre) -> int:
    return max(round(seconds * rate), round((timbre.attack_s + timbre.release_s) * rate))


def _waves(pitch: int, length: int, rate: int, timbre: Timbre) -> np.ndarray:
    """The fading partials of a note (L,) without its beginning and end: sin(a + b), a in steps of a block."""
    blocks = -(-length // BLOCK)
    waves = np.zeros((blocks, BLOCK))
    frequency = 440.0 * 2 ** ((pitch - 69) / 12)
    for k, weight in enumerate(timbre.partials, 1):
        if weight and frequency * k < HIGHEST * rate:
            step = 2 * np.pi * frequency * k / rate
            a, b = step * BLOCK * np.arange(blocks)[:, None], step * np.arange(BLOCK)
            waves += (weight * np.sin(a)) * np.cos(b)
            waves += (weight * np.cos(a)) * np.sin(b)
    fading = timbre.decay_per_s / rate
    waves *= np.exp(-fading * BLOCK * np.arange(blocks))[:, None]
    waves *= np.exp(-fading * np.arange(BLOCK))
    return waves.ravel()[:length]


def _edged(waves: np.ndarray, rate: int, timbre: Timbre) -> np.ndarray:
    """``waves`` (L,) that rise and fall linearly at their ends; a new array."""
    waves, n = waves.copy(), len(waves)
    rising, falling = (min(math.ceil(edge_s * rate), n) for edge_s in (timbre.attack_s, timbre.release_s))
    ends = np.r_[:rising, max(rising, n - falling) : n]
    time_s = ends / rate
    waves[ends] *= np.minimum(time_s / timbre.attack_s, (n / rate - time_s) / timbre.release_s).clip(0, 1)
    return waves


@lru_cache(maxsize=256)
def drum(pitch: int, rate: int) -> np.ndarray:
    """A burst for the General MIDI drum ``pitch``: a low sine for kicks and toms, noise, high for cymbals; (L,)."""
    length = round(0.08 * rate)
    time_s = np.arange(length) / rate
    if pitch in KICKS or pitch in TOMS:
        frequency = 70.0 if pitch in KICKS else 90.0 + 15.0 * TOMS.index(pitch)
        return np.sin(2 * np.pi * frequency * time_s) * np.exp(-30 * time_s)
    noise = np.random.default_rng(pitch).standard_normal(length)
    if pitch in CYMBALS:
        noise = np.diff(noise, prepend=0.0)
    return noise * np.exp(-60 * time_s)


@lru_cache(maxsize=16)
def click(is_downbeat: bool, rate: int) -> np.ndarray:
    """A beep for a beat, higher and louder on a downbeat; (L,)."""
    time_s = np.arange(round(0.06 * rate)) / rate
    frequency = DOWNBEAT_HZ if is_downbeat else CLICK_HZ
    return (1.0 if is_downbeat else 0.6) * np.sin(2 * np.pi * frequency * time_s) * np.exp(-50 * time_s)
