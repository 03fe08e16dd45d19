"""Whether the levels of a copy confirm it: what lies under other music is as loud as it should be, or covered.

    frames of the query (T, P) and of what it seems to copy, laid over each other -> agreement, -1 to 1

A passage's pattern (`musicldm.novelty.alignment`) is weak where louder music covers half of it, and unrelated music of
one kind reaches the same score. But of two sounds in one band the louder is heard, so that no partial of what was
copied can be weaker than its level times one gain for all of it, and those that nothing covers have just that level.
Music that only shares a pattern has partials at all other levels. After the log-max approximation of mixtures (Roweis,
2000, One microphone source separation).
"""

from __future__ import annotations

import numpy as np

RANGE_DB = 60.0  # of frames, kept in 255 steps
ENVELOPE = 11  # bands over which the spectral envelope is taken
PROMINENT_DB = 6.0  # above the envelope: a partial
HEARD_DB = 15.0  # above the lowest level kept
SAME_DB = 3.0  # about as much do mixing and neighbouring partials change a level
MISSING_DB = 5.0  # below its level a partial is not there
GAINS_DB = np.arange(-40.0, 30.0)  # of the copy, that are tried
SHORTEST = 20  # frames laid over each other; fewer agree by chance
FEWEST = 30  # partials
CHANCE = 0.2  # agreement that music which copied nothing has too


def agreement(heard: np.ndarray, copied: np.ndarray) -> float:
    """Share of the partials of ``copied (T, P)`` with one gain in ``heard (T, P)``, less the share that is missing.

    Both are uint8 frames of `musicldm.novelty.alignment.pitch_frames`. The gain is the one that makes it largest. 0 if
    too little is laid over each other to tell.
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
    """What the levels add to a passage's score: by how much they agree beyond chance."""
    return max(0.0, agreement(heard, copied) - CHANCE)
