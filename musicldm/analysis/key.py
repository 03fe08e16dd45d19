"""The key of a recording, and its spectrum in semitone bands.

waveform (L,) -> magnitudes in bands of one semitone (T, P) -> profile of pitch classes (12,) -> key
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from musicldm.analysis.waveforms import SILENCE, check_waveform

PITCHES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
# Key profiles, from the tonic upwards: Albrecht and Shanahan (2013), from 982 pieces. `musicldm.data.prepare` keeps a
# detector of its own (`find_key`): its results are part of collections, and the two do not always agree.
PROFILES = {
    "major": (0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081),
    "minor": (0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052),
}
LOWEST, HIGHEST = 36, 95  # MIDI pitches of the lowest and highest band: C2 to B6


class Key(NamedTuple):
    """The most probable key of a recording."""

    name: str | None  # "Eb major"; None for silence
    correlation: float  # with the key's profile, at most 1
    margin: float  # difference to the correlation of the next best key


def pitch_bands(
    waveform: np.ndarray, sample_rate: int, frames_per_s: float = 10.0, lowest: int = LOWEST, highest: int = HIGHEST
) -> np.ndarray:
    """Magnitudes ``(T, P)`` of ``waveform (L,)`` in bands of one semitone, from MIDI pitch ``lowest`` to ``highest``.

    Windows of about a quarter of a second separate neighbouring semitones down to about C3.

    Args:
        waveform: (L,).
        sample_rate: in Hz.
        frames_per_s: frames per second.
        lowest: MIDI pitch of the first band.
        highest: MIDI pitch of the last band.

    Examples:
        >>> a4 = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
        >>> int(pitch_bands(a4, 16_000).mean(axis=0).argmax()) + LOWEST  # MIDI pitch
        69
    """
    n_fft = 2 ** round(np.log2(0.256 * sample_rate))
    hop = round(sample_rate / frames_per_s)
    samples = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
    samples = torch.nn.functional.pad(samples, (0, max(0, n_fft // 2 + 1 - len(samples))))
    spectrum = torch.stft(samples, n_fft, hop, window=torch.hann_window(n_fft), return_complex=True).abs()  # (K, T)
    return (_pitch_filters(sample_rate, n_fft, lowest, highest) @ spectrum).T.numpy()


def _pitch_filters(sample_rate: int, n_fft: int, lowest: int, highest: int) -> torch.Tensor:
    """Triangular filters (P, K), one semitone to either side of each pitch and at least one bin wide, with sum 1."""
    frequencies = torch.arange(1, n_fft // 2 + 1) * sample_rate / n_fft
    pitch = 69 + 12 * torch.log2(frequencies / 440)  # of each bin but the first
    width = (12 * sample_rate / n_fft / frequencies / np.log(2)).clamp(min=1.0)  # of a bin in semitones, at least 1
    distance = (torch.arange(lowest, highest + 1)[:, None] - pitch[None]).abs() / width
    filters = torch.nn.functional.pad((1 - distance).clamp(min=0), (1, 0))
    return filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-6)


def estimate_key(waveform: np.ndarray, sample_rate: int) -> Key:
    """The key whose profile correlates best with the pitch classes of ``waveform (L,)`` at ``sample_rate`` Hz.

    The method of Krumhansl and Schmuckler (Krumhansl, 1990) with the profiles of Albrecht and Shanahan (2013),
    https://doi.org/10.1525/mp.2013.31.1.59.

    Examples:
        >>> scale = [60, 62, 64, 65, 67, 69, 71, 72, 67, 64, 60]  # C major
        >>> hertz = np.repeat(440 * 2 ** ((np.array(scale) - 69) / 12), 4000)
        >>> estimate_key(np.sin(2 * np.pi * np.cumsum(hertz) / 16_000), 16_000).name
        'C major'

    Raises:
        ValueError: if the waveform is not (L,), empty or not finite.
    """
    check_waveform(waveform)
    if np.abs(waveform).max() < SILENCE:
        return Key(None, 0.0, 0.0)
    bands = np.sqrt(pitch_bands(waveform, sample_rate))
    chroma = np.zeros(12)
    np.add.at(chroma, np.arange(LOWEST, HIGHEST + 1) % 12, bands.mean(axis=0))
    names, fits = [], []
    for mode, profile in PROFILES.items():
        for tonic in range(12):
            names.append(f"{PITCHES[tonic]} {mode}")
            fits.append(np.corrcoef(np.roll(profile, tonic), chroma)[0, 1])
    second, best = np.argsort(fits)[-2:]
    return Key(names[best], float(fits[best]), float(fits[best] - fits[second]))
