"""Confirmation of a copied passage by levels, also where the copy lies under other music.

    aligned frames of the query (T, P) and of the candidate (T, P) -> agreement, -1 to 1

The pattern of a passage (`musicldm.novelty.alignment`) scores low where louder music covers half of it, and unrelated
music of the same kind can reach the same score. Levels decide: the level of a mixture in a band is about the maximum of
its parts (log-max approximation; Roweis, 2000, One microphone source separation). So no partial of a copy is weaker
than its original level times one common gain, and uncovered partials have exactly that level. In music that only shares
the pattern, partials have other levels.
"""

from __future__ import annotations

import numpy as np

RANGE_DB = 60.0  # range of frames, stored in 255 steps
ENVELOPE = 11  # bands of the spectral envelope's filter
PROMINENT_DB = 6.0  # least level of a partial above the envelope
HEARD_DB = 15.0  # least level of a partial above the lowest stored level
SAME_DB = 3.0  # tolerance of equal levels: mixing and neighbouring partials change a level by about as much
MISSING_DB = 5.0  # a partial that is weaker than expected by more than this is missing
GAINS_DB = np.arange(-40.0, 30.0)  # gains of the copy that are tried
SHORTEST = 20  # least number of aligned frames; fewer agree by chance
FEWEST = 30  # least number of partials
CHANCE = 0.2  # agreement that unrelated music reaches too


def agreement(heard: np.ndarray, copied: np.ndarray) -> float:
    """Share of the partials of ``copied (T, P)`` with one common gain in ``heard (T, P)``, minus the share missing.

    Both are aligned uint8 frames of `musicldm.novelty.alignment.pitch_frames`. The gain is chosen to maximise the
    result. 0 if fewer than `SHORTEST` frames are aligned.
    """
    from scipy.ndimage import uniform_filter1d

    if len(copied) < SHORTEST:
        return 0.0
    heard, copied = (np.asarray(each, np.float32) * (RANGE_DB / 255) for each in (heard, copied))
    prominence = copied - uniform_filter1d(copied, ENVELOPE, axis=1, mode="nearest")
    partials = (prominence > PROMINENT_DB) & (copied > HEARD_DB)
    gains = np.sort((heard - copied)[partials])
    if len(gains) < FEWEST:
        return 0.0
    up_to, below, missing = (np.searchsorted(gains, GAINS_DB + more) for more in (SAME_DB, -SAME_DB, -MISSING_DB))
    return float((up_to - below - missing).max() / len(gains))


def confirmation(heard: np.ndarray, copied: np.ndarray) -> float:
    """Addition to a passage's score: the agreement of levels above `CHANCE`."""
    return max(0.0, agreement(heard, copied) - CHANCE)
