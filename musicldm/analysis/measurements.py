"""What can be measured in a recording without a learned model: key, percussion, onsets.

    waveform (L,)  -> spectrogram -> one number or name

Tempo is `augment.track_beats(...).tempo_bpm`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from vocoder import MelConfig, log_mel_spectrogram

PITCHES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
# How well each degree of a scale fits its key, from C: Albrecht and Shanahan (2013), from 982 pieces.
PROFILES = {
    "major": (0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081),
    "minor": (0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052),
}
LOWEST, HIGHEST = 36, 95  # MIDI pitches whose bands are heard: C2 to B6
SILENCE = 1e-4  # a peak below this is silence: -80 dB


class Key(NamedTuple):
    """The likeliest key of a recording."""

    name: str | None  # "Eb major"; None for silence
    correlation: float  # with the key's profile, at most 1
    margin: float  # how much more than the next key


def pitch_bands(
    waveform: np.ndarray, sample_rate: int, frames_per_s: float = 10.0, lowest: int = LOWEST, highest: int = HIGHEST
) -> np.ndarray:
    """Magnitudes ``(T, P)`` of ``waveform (L,)`` in bands of one semitone, from MIDI pitch ``lowest`` to ``highest``.

    Windows of about a quarter of a second tell neighbouring semitones apart down to about C3; below that, less.
    """
    n_fft = 2 ** round(np.log2(0.256 * sample_rate))
    hop = round(sample_rate / frames_per_s)
    samples = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
    samples = torch.nn.functional.pad(samples, (0, max(0, n_fft // 2 + 1 - len(samples))))
    spectrum = torch.stft(samples, n_fft, hop, window=torch.hann_window(n_fft), return_complex=True).abs()  # (K, T)
    return (_pitch_filters(sample_rate, n_fft, lowest, highest) @ spectrum).T.numpy()


def _pitch_filters(sample_rate: int, n_fft: int, lowest: int, highest: int) -> torch.Tensor:
    """Triangles (P, K) a semitone to either side of each pitch, at least one bin wide, adding up to 1."""
    frequencies = torch.arange(1, n_fft // 2 + 1) * sample_rate / n_fft
    pitch = 69 + 12 * torch.log2(frequencies / 440)  # of each bin but the first
    width = (12 * sample_rate / n_fft / frequencies / np.log(2)).clamp(min=1.0)  # of a bin in semitones, at least 1
    distance = (torch.arange(lowest, highest + 1)[:, None] - pitch[None]).abs() / width
    filters = torch.nn.functional.pad((1 - distance).clamp(min=0), (1, 0))
    return filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-6)


def estimate_key(waveform: np.ndarray, sample_rate: int) -> Key:
    """The key whose profile of pitch classes correlates best with that of ``waveform (L,)``.

    Krumhansl and Schmuckler's method (Krumhansl, 1990) with the profiles of Albrecht and Shanahan (2013),
    https://doi.org/10.1525/mp.2013.31.1.59.
    """
    _check(waveform)
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


def percussive_share(waveform: np.ndarray, sample_rate: int) -> float:
    """Share of the energy of ``waveform (L,)`` that is percussive rather than harmonic, from 0 to 1; 0 for silence.

    Vertical and horizontal structures of the spectrogram told apart by medians.
    Fitzgerald (2010), Harmonic/percussive separation using median filtering.
    """
    from librosa.decompose import hpss

    _check(waveform)
    n_fft = 2 ** round(np.log2(0.064 * sample_rate))
    samples = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
    samples = torch.nn.functional.pad(samples, (0, max(0, n_fft // 2 + 1 - len(samples))))
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(samples, n_fft, n_fft // 4, window=window, return_complex=True).abs().numpy()
    if not spectrum.any():
        return 0.0
    _, percussive = hpss(spectrum, kernel_size=(17, 17))
    return float(np.square(percussive).sum() / np.square(spectrum).sum())


def onset_rate(waveform: np.ndarray, sample_rate: int) -> float:
    """Onsets per second of ``waveform (L,)``: peaks of the rise of its log-mel bands; chords count once.

    Spectral flux with a threshold that follows the music, Bock, Krebs and Schedl (2012), Evaluating the online
    capabilities of onset detection methods.
    """
    from scipy.ndimage import maximum_filter1d, uniform_filter1d

    _check(waveform)
    if np.abs(waveform).max() < SILENCE:
        return 0.0
    config = MelConfig(
        sample_rate=sample_rate,
        n_fft=2 ** round(np.log2(0.046 * sample_rate)),
        hop_length=round(sample_rate / 100),
        n_mels=40,
        f_max=min(8000.0, sample_rate / 2),
        floor=1e-3,
    )
    samples = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
    samples = torch.nn.functional.pad(samples, (0, max(0, config.n_fft - len(samples))))
    mel = log_mel_spectrogram(samples[None], config)[0].numpy()  # (T, F), 100 frames a second
    flux = (mel[2:] - mel[:-2]).clip(min=0).mean(axis=1)
    peaks = (flux == maximum_filter1d(flux, 7)) & (flux > uniform_filter1d(flux, 41) + 0.08)
    return float(peaks.sum() / (len(waveform) / sample_rate))


def _check(waveform: np.ndarray) -> None:
    if np.ndim(waveform) != 1 or not len(waveform):
        raise ValueError(f"a waveform must be (samples,) and not empty, got {np.shape(waveform)}")
    if not np.isfinite(waveform).all():
        raise ValueError("the waveform holds NaN or infinity; repair it first")
