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

    Vertical and horizontal structures of the spectrogram told apart by medians.
    Fitzgerald (2010), Harmonic/percussive separation using median filtering.
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
    """Onsets per second of ``waveform (L,)``: peaks of the rise of its log-mel bands; chords count once.

    Spectral flux with a threshold that follows the music, Bock, Krebs and Schedl (2012), Evaluating the online
    capabilities of onset detection methods.
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
