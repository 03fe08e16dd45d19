"""A recording that is made anew as a whole: what a model made in the recording's rate, length, channels and loudness.

new sound at the model's rate  ->  `fit_whole`  ->  `Patch` over all of the source
"""

from __future__ import annotations

import numpy as np
import soxr

from musicldm.analysis.waveforms import SILENCE
from musicldm.editing.levels import limited, placed
from musicldm.editing.patches import Patch
from musicldm.editing.source import Source

MOST_GAIN = 10.0  # of the new sound; what is softer stays softer


def fit_whole(source: Source, waveform: np.ndarray, rate: int) -> Patch:
    """``waveform`` (L,) or (A', L) at ``rate`` Hz in place of all of ``source``: as long, and as loud in each channel.

    Loudness is the mean power over the whole of it; nothing goes beyond full scale, or the source's peak.
    """
    old = source.read(0, source.length)  # (A, n)
    new = np.atleast_2d(np.asarray(waveform, dtype=float))
    if rate != source.rate:
        new = np.atleast_2d(soxr.resample(new.T, rate, source.rate, quality="VHQ").T)
    new = np.pad(new, ((0, 0), (0, max(0, source.length - new.shape[1]))))[:, : source.length]
    new = placed(new, old)
    powers = [float(np.square(one).mean()) for one in (old, new)]
    if min(powers) > SILENCE**2:
        new = new * min(MOST_GAIN, np.sqrt(powers[0] / powers[1]))
    return Patch(0, source.length, limited(new, old, source.rate))
