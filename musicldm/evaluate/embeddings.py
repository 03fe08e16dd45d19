"""Embeddings that no model learned, to judge one by something it was not trained with."""

from __future__ import annotations

import torch
from torch import Tensor

from vocoder import MelConfig, log_mel_spectrogram


def log_mel_statistics(waveform: Tensor, config: MelConfig = MelConfig()) -> Tensor:
    """Four statistics of each mel band ``(B, 4 F)`` of ``waveform (B, L)``, all in units of the natural logarithm.

    Mean and standard deviation over time, mean absolute change from frame to frame, and the standard deviation of
    bands smoothed over half a second: level, contrast, onsets, phrasing.
    """
    mel = log_mel_spectrogram(waveform, config)  # (B, T, F)
    frames = max(1, round(0.5 * config.sample_rate / config.hop_length))
    smooth = torch.nn.functional.avg_pool1d(
        mel.transpose(1, 2), frames, stride=max(1, frames // 4), padding=frames // 2, count_include_pad=False
    )
    statistics = (mel.mean(1), mel.std(1), mel.diff(dim=1).abs().mean(1), smooth.std(2))
    return torch.cat(statistics, dim=1)
