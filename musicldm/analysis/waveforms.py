"""Checks of waveforms that all measurements share."""

from __future__ import annotations

import numpy as np

SILENCE = 1e-4  # peak below which a waveform counts as silent: -80 dB


def check_waveform(waveform: np.ndarray) -> None:
    """Raise ValueError unless ``waveform`` is (L,), not empty and finite."""
    if np.ndim(waveform) != 1 or not len(waveform):
        raise ValueError(f"a waveform must be (samples,) and not empty, got {np.shape(waveform)}")
    if not np.isfinite(waveform).all():
        raise ValueError("the waveform holds NaN or infinity; remove these samples first")
