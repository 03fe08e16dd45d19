"""Audibility of seams: how much a recording changes at a place, compared with the changes at its own beats.

waveform (L,)  ->  log-mel, 100 frames a second  ->  change from frame to frame  ->  largest near a place
               ->  rank among the largest near each beat: 0 to 1

The change at an inaudible seam is no larger than those at the beats of the music, so its rank is that of any beat.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from musicldm.analysis.waveforms import check_waveform
from vocoder import MelConfig, log_mel_spectrogram

FRAMES_PER_S = 100
WINDOW_S = 0.032  # of one frame
NEAR_S = 0.04  # to either side of a place: the frames that contain it, and onsets that are a little early or late
RANGE = 8.0  # natural logarithm, 70 dB: levels further below a recording's loudest band and frame are inaudible
LEAST_S = 1e-3  # magnitude below which all is silence
FEWEST = 8  # beats for a rank; with fewer, ranks are among all places
BANDS = 40


def changes(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Change of ``waveform (L,)`` at each hundredth of a second, ``(T,)``, in natural logarithms of magnitude.

    The mean over 40 mel bands up to 8 kHz of the absolute difference between the log-mel 10 ms later and 10 ms earlier,
    in frames of about 32 ms. Levels more than 70 dB below the loudest are raised to that level first, so that inaudible
    changes do not count. The change is 0 in silence, and at the ends, where frames would reach beyond the recording.

    Raises:
        ValueError: if the waveform is not (L,), empty or not finite.
    """
    check_waveform(waveform)
    config = MelConfig(
        sample_rate=sample_rate,
        n_fft=2 ** round(np.log2(WINDOW_S * sample_rate)),
        hop_length=round(sample_rate / FRAMES_PER_S),
        n_mels=BANDS,
        f_max=min(8000.0, sample_rate / 2),
    )
    samples = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
    samples = torch.nn.functional.pad(samples, (0, max(0, config.n_fft - len(samples))))
    mel = log_mel_spectrogram(samples[None], config)[0].numpy()  # (T, F)
    mel = np.maximum(mel, max(float(mel.max()) - RANGE, np.log(LEAST_S)))
    curve = np.zeros(len(mel))
    edge = 1 - (-config.n_fft // 2 // config.hop_length)  # frames that hear sound reflected at an end, or neighbours
    curve[edge:-edge] = np.abs(mel[edge + 1 : len(mel) - edge + 1] - mel[edge - 1 : -edge - 1]).mean(axis=1)
    return curve


def seam_quantiles(
    waveform: np.ndarray,
    sample_rate: int,
    seams_s: Sequence[float],
    beats_s: Sequence[float] | None = None,
    others_s: Sequence[float] = (),
) -> np.ndarray:
    """Ranks (N,) from 0 to 1 of the changes at ``seams_s`` among the changes at the beats.

    The change at a place is the largest of `changes` within 40 ms. Its rank is the share of beats with a smaller
    change; equal changes count half, so that the rank is 0.5 in silence. Beats nearer than 80 ms to a seam are left
    out. If fewer than 8 beats remain, the rank is among all hundredths of a second at that distance from any seam; such
    ranks are higher, since most places lie between beats.

    Args:
        waveform: (L,), mono.
        sample_rate: in Hz.
        seams_s: places in seconds.
        beats_s: times of the beats in seconds; None to rank among all places.
        others_s: further places, in seconds, near which beats are left out.

    Examples:
        >>> steady = np.sin(np.arange(32_000) / 3)
        >>> cut = np.concatenate([steady, np.sin(np.arange(32_000) / 2)])  # another tone after two seconds
        >>> seam_quantiles(cut, 16_000, [2.0]).tolist()
        [1.0]

    Raises:
        ValueError: if a seam is outside the waveform, or the waveform is not (L,), empty or not finite.
    """
    curve = changes(waveform, sample_rate)
    duration_s = len(waveform) / sample_rate
    seams = np.asarray(seams_s, dtype=float).reshape(-1)
    if seams.size and not (seams.min() >= 0 and seams.max() <= duration_s):
        raise ValueError(f"seams must lie within the {duration_s:.3f} s of the waveform, got {seams_s}")
    apart = np.concatenate([seams, np.asarray(others_s, dtype=float).reshape(-1)])
    references = np.empty(0) if beats_s is None else _apart(np.asarray(beats_s, dtype=float), apart, duration_s)
    if len(references) < FEWEST:
        references = _apart(np.arange(len(curve)) / FRAMES_PER_S, apart, duration_s)
    expected = np.sort(_largest_near(curve, references, sample_rate))
    found = _largest_near(curve, seams, sample_rate)
    if not len(expected):
        return np.full(len(found), 0.5)
    below, up_to = np.searchsorted(expected, found, "left"), np.searchsorted(expected, found, "right")
    return (below + up_to) / 2 / len(expected)


def seam_quantile(waveform: np.ndarray, sample_rate: int, at_s: float, beats_s: Sequence[float] | None = None) -> float:
    """`seam_quantiles` for one seam at ``at_s`` seconds."""
    return float(seam_quantiles(waveform, sample_rate, [at_s], beats_s)[0])


def loop_quantile(waveform: np.ndarray, sample_rate: int, beats_s: Sequence[float] | None = None) -> float:
    """Rank from 0 to 1 of the change where the loop ``waveform (L,)`` begins again, among the changes at its beats.

    `seam_quantile` at the middle of the loop played twice.

    Args:
        waveform: (L,), mono.
        sample_rate: in Hz.
        beats_s: times of the beats of one turn in seconds.

    Examples:
        >>> turn = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)  # whole periods
        >>> loop_quantile(turn, 16_000) < 1
        True
    """
    check_waveform(waveform)
    turn_s = len(waveform) / sample_rate
    twice_s = None if beats_s is None else [beat + turn * turn_s for turn in (0, 1) for beat in beats_s]
    twice = np.tile(waveform, 2)
    return float(seam_quantiles(twice, sample_rate, [turn_s], twice_s, others_s=(0.0, 2 * turn_s))[0])


def loop_jump(waveform: np.ndarray, sample_rate: int) -> float:
    """Change where the loop ``waveform (L,)`` begins again: the largest of `changes` within 40 ms."""
    check_waveform(waveform)
    curve = changes(np.tile(waveform, 2), sample_rate)
    return float(_largest_near(curve, np.array([len(waveform) / sample_rate]), sample_rate)[0])


def _apart(places_s: np.ndarray, apart_s: np.ndarray, duration_s: float) -> np.ndarray:
    """Those of ``places_s`` inside the recording that are at least 2 `NEAR_S` away from all of ``apart_s``."""
    inside = places_s[(places_s >= 0) & (places_s < duration_s)]
    if not len(apart_s):
        return inside
    return inside[np.abs(inside[:, None] - apart_s[None]).min(axis=1) >= 2 * NEAR_S]


def _largest_near(curve: np.ndarray, places_s: np.ndarray, sample_rate: int) -> np.ndarray:
    """The largest value of ``curve (T,)`` within `NEAR_S` of each of ``places_s (N,)``, (N,)."""
    frames_per_s = sample_rate / round(sample_rate / FRAMES_PER_S)
    reach = round(NEAR_S * frames_per_s)
    middle = np.clip(np.round(places_s * frames_per_s).astype(int), 0, len(curve) - 1)
    around = np.clip(middle[:, None] + np.arange(-reach, reach + 1), 0, len(curve) - 1)
    return curve[around].max(axis=1)
