"""CLAP embeddings of windows of 2 s, of a collection and of music that is compared with it.

    waveform (L,) -> windows of 2 s that sound (W, L') -> each repeated to the length of a clip -> embeddings (W, D)

A short copied passage hardly changes the embedding of a whole clip, but that of a window which it fills. CLAP's feature
extractor extends a window to the length that CLAP reads ("repeatpad" for those of Wu et al., 2023).
"""

from __future__ import annotations

import numpy as np
import torch

from musicldm.analysis.waveforms import SILENCE
from musicldm.audio.resampling import resample
from musicldm.models.clap_embedder import ClapEmbedder

WINDOW_S = 2.0
HOP_S = 2.0  # between windows of the collection, which do not overlap
QUERY_HOP_S = 0.5  # between windows of a query: one starts within a quarter of a second of any time
AT_ONCE = 32  # windows of a query embedded at a time


def cut_windows(waveform: np.ndarray, sample_rate: int, hop_s: float) -> tuple[list[float], list[np.ndarray]]:
    """Starts in seconds, and windows (L',) of ``waveform (L,)`` from ``hop_s`` to ``hop_s``, the last at its end.

    Silent windows are left out, since all of them are equal. Waveforms shorter than a window have none.
    """
    length, hop = round(WINDOW_S * sample_rate), round(hop_s * sample_rate)
    last = len(waveform) - length
    if last < 0:
        return [], []
    starts = sorted({*range(0, last + 1, hop), last})
    starts = [start for start in starts if np.abs(waveform[start : start + length]).max() >= SILENCE]
    return [start / sample_rate for start in starts], [waveform[start : start + length] for start in starts]


def embed_windows(
    windows: list[np.ndarray], sample_rate: int, embedder: ClapEmbedder, batch_size: int = AT_ONCE
) -> np.ndarray:
    """Embeddings (W, D) of ``windows``, all (L',)."""
    vectors = [np.zeros((0, embedder.size), np.float32)]
    for first in range(0, len(windows), batch_size):
        vectors.append(embedder(torch.from_numpy(np.stack(windows[first : first + batch_size])), sample_rate))
    return np.concatenate(vectors)


def query_windows(
    waveform: np.ndarray, sample_rate: int, embedder: ClapEmbedder
) -> tuple[list[float], list[np.ndarray]]:
    """`cut_windows` of a float32 ``waveform (L,)`` to compare with a collection, at the rate that CLAP hears."""
    rate = embedder.feature_extractor.sampling_rate
    return cut_windows(resample(torch.from_numpy(waveform), sample_rate, rate).numpy(), rate, QUERY_HOP_S)
