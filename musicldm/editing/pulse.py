"""A pulse in the starting noise, which brings music to a tempo although the model does not know tempi.

    tempo -> noise that swells on each beat, and the same noise unchanged -> VAE -> their difference, of unit variance

Added to the starting noise at a tenth of its level, it makes most music follow these beats, since a model develops the
structure that it finds in the noise. A stronger pulse leaves music that consists of beats only.
"""

from __future__ import annotations

import numpy as np

REST = 0.25  # level between the beats, where on a beat it is 1
DECAY_S = 0.12
WEAK = 0.8  # level of beats that are not the first of a bar
LEVEL = 0.1  # root mean square of the swelling noise
LOWEST_HZ = 40.0  # lowest frequency of the pink noise
SLOWEST_BPM, FASTEST_BPM = 55.0, 210.0  # range of a pulse; other tempi are doubled or halved


def pulsed_noise(n_samples: int, rate: int, bpm: float, beats_per_bar: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Pink noise (L,), float32, that swells on each beat from the first sample on, and the same without swelling."""
    while bpm > FASTEST_BPM:
        bpm /= 2
    while bpm < SLOWEST_BPM:
        bpm *= 2
    beat = np.arange(n_samples) / rate * bpm / 60
    number = np.floor(beat + 1e-9)
    strength = np.where(number % beats_per_bar == 0, 1.0, WEAK)
    level = REST + strength * (1 - REST) * np.exp(-(beat - number).clip(0) * 60 / bpm / DECAY_S)
    steady = _pink(n_samples, rate)
    return (level * steady).astype(np.float32), steady.astype(np.float32)


def _pink(n_samples: int, rate: int) -> np.ndarray:
    """Pink noise (L,), always the same, which is periodic."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(n_samples))
    spectrum /= np.sqrt(np.maximum(np.fft.rfftfreq(n_samples, 1 / rate), LOWEST_HZ))
    noise = np.fft.irfft(spectrum, n_samples)
    return noise * (LEVEL / max(noise.std(), 1e-12))
