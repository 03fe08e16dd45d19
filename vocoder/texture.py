"""Texture loss: compares how much spectrograms change from frame to frame and from band to band.

After the statistics of McDermott and Simoncelli (2011), Sound texture perception via statistics of the auditory
periphery.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TEXTURE_LAGS = {2: (1, 2, 4, 8), 3: (1, 2)}  # axis of (B, 1, T, F): frames, bands
TEXTURE_WINDOW = 32  # frames


def roughness(mel: Tensor) -> Tensor:
    """Mean absolute differences over each of `TEXTURE_LAGS` of ``mel (B, 1, T, F)``, in nats, flat: ``(N,)``.

    Along time and across bands, in windows of `TEXTURE_WINDOW` frames of each band, half a window apart.
    """
    features = []
    for axis, lags in TEXTURE_LAGS.items():
        for lag in (lag for lag in lags if lag < mel.shape[axis]):
            length = mel.shape[axis] - lag
            change = (mel.narrow(axis, lag, length) - mel.narrow(axis, 0, length)).abs()
            frames = min(TEXTURE_WINDOW, change.shape[2])
            features.append(functional.avg_pool2d(change, (frames, 1), stride=(max(1, frames // 2), 1)).flatten())
    return torch.cat(features)


def texture_loss(mel: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean absolute difference of the `roughness` of both ``(B, 1, T, F)``, in nats.

    A mean absolute error of spectrograms is minimised by leaving out changes that cannot be predicted exactly, which
    smooths them. This loss requires changes of the right size, at any place.
    """
    return (roughness(reconstruction.float()) - roughness(mel)).abs().mean()
