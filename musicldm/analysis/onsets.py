"""Percussion and onsets of a recording.

    waveform (L,) -> spectrogram -> one number

Tempo is `augment.track_beats(...).tempo_bpm`.
"""

from __future__ import annotations

import numpy as np
import torch

from musicldm.analysis.waveforms import SILENCE, check_waveform
from vocoder import MelConfig, log_mel_spectrogram


def percussive_share(waveform: np.ndarray, sample_rate: int) -> float:
    """Share of the energy of ``waveform (L,)`` that is percussive rather than harmonic, from 0 to 1; 0 for silence.

    Vertical and horizontal structures of the spectrogram are separated by median filters.
    Fitzgerald (2010), Harmonic/percussive separation using median filtering.

    Examples:
        >>> tone, click = np.sin(np.arange(16_000) / 3), np.zeros(16_000)
        >>> click[::4000] = 1.0
        >>> percussive_share(tone, 16_000) < 0.1 < 0.9 < percussive_share(click, 16_000)
        True

    Raises:
        ValueError: if the waveform is not (L,), empty or not finite.
    """
    from librosa.decompose import hpss

    check_waveform(waveform)
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
    """Onsets per second of ``waveform (L,)``; the notes of a chord count as one onset.

    Peaks of the spectral flux of log-mel bands above an adaptive threshold: Böck, Krebs and Schedl (2012), Evaluating
    the online capabilities of onset detection methods.

    Examples:
        >>> notes = np.sin(np.arange(48_000) / 3) * np.exp(-(np.arange(48_000) % 8000) / 1000)  # two in a second
        >>> round(onset_rate(notes, 16_000))
        2

    Raises:
        ValueError: if the waveform is not (L,), empty or not finite.
    """
    from scipy.ndimage import maximum_filter1d, uniform_filter1d

    check_waveform(waveform)
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
