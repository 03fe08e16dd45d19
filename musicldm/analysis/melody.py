"""Transcription of a single voice to notes.

    waveform (L,) -> probabilistic YIN -> pitch of each frame -> notes: start and end in seconds, MIDI pitch

Mauch and Dixon (2014), pYIN: a fundamental frequency estimator using probabilistic threshold distributions.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.ndimage import median_filter

from musicldm.analysis.waveforms import SILENCE, check_waveform

LOWEST_HZ, HIGHEST_HZ = 60.0, 3200.0  # from a low voice to whistling
RATE, FRAME, HOP = 16_000, 1024, 160  # hops of 10 ms
SHORTEST_S = 0.08
SMOOTHED = 9  # frames of the median filter of the pitch, against vibrato and slides between notes
AGAIN_DB, AGAIN_FRAMES = 6.0, 6  # a rise of level by so much within so many frames repeats the same pitch
QUIET_DB = -40.0  # relative to the loudest frame; what is quieter is breath and room noise
DOUBT = 0.02  # least probability of a pitch; pYIN gives 0.01 to noise


def melody_notes(waveform: np.ndarray, sample_rate: int) -> list[tuple[float, float, int]]:
    """Notes (start_s, end_s, MIDI pitch) of ``waveform (L,)``, in equal temperament relative to its own tuning.

    Notes shorter than `SHORTEST_S` are left out. The list is empty for silence and noise.

    Raises:
        ValueError: if the waveform is not (L,), empty or not finite.
    """
    import librosa
    import soxr

    check_waveform(waveform)
    waveform = np.asarray(waveform, np.float32)
    if np.abs(waveform).max() < SILENCE:
        return []
    if sample_rate != RATE:
        waveform = soxr.resample(waveform, sample_rate, RATE, quality="HQ")
    if len(waveform) < FRAME:
        return []
    hertz, voiced, probability = librosa.pyin(
        waveform, fmin=LOWEST_HZ, fmax=HIGHEST_HZ, sr=RATE, frame_length=FRAME, hop_length=HOP
    )
    level = librosa.feature.rms(y=waveform, frame_length=FRAME, hop_length=HOP)[0][: len(hertz)]
    level_db = 20 * np.log10(np.maximum(level, 1e-6))
    heard = voiced & np.isfinite(hertz) & (probability > DOUBT) & (level_db > level_db.max() + QUIET_DB)
    if not heard.any():
        return []
    pitch = librosa.hz_to_midi(np.where(heard, hertz, 440.0))
    tuning = np.angle(np.exp(2j * np.pi * pitch[heard]).mean()) / (2 * np.pi)  # semitones the whole voice is off by
    return [
        (first * HOP / RATE, end * HOP / RATE, number)
        for start, stop in _runs(heard)
        for first, end, number in _split(pitch[start:stop] - tuning, level_db[start:stop], start)
        if (end - first) * HOP / RATE >= SHORTEST_S
    ]


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Stretches (start, stop) of frames in which ``mask`` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _split(pitch: np.ndarray, level_db: np.ndarray, offset: int) -> list[tuple[int, int, int]]:
    """Notes (first frame, end, MIDI pitch) of frames ``pitch (T,)`` that follow one another from frame ``offset``."""
    whole = np.rint(median_filter(pitch, SMOOTHED, mode="nearest")).astype(int)
    rise = np.zeros(len(level_db))
    if len(level_db) > AGAIN_FRAMES:
        rise[AGAIN_FRAMES:] = level_db[AGAIN_FRAMES:] - level_db[:-AGAIN_FRAMES]
    struck = (rise[1:] >= AGAIN_DB) & (rise[:-1] < AGAIN_DB)
    cuts = np.flatnonzero((np.diff(whole) != 0) | struck) + 1
    places = [0, *cuts.tolist(), len(whole)]
    notes: list[tuple[int, int, int]] = []
    for first, end in pairwise(places):
        number = int(np.median(whole[first:end]))
        short = (end - first) * HOP / RATE < SHORTEST_S
        if short and notes and notes[-1][1] == offset + first:  # a slide belongs to the note before it
            notes[-1] = (notes[-1][0], offset + end, notes[-1][2])
        else:
            notes.append((offset + first, offset + end, number))
    return notes
