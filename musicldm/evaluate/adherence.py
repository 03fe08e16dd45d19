"""Does the music do what its words ask? What was asked against what was measured, as functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

OCTAVES = (1 / 3, 1 / 2, 2.0, 3.0)  # a tracker that counts another level of the metre


class TempoAdherence(NamedTuple):
    """Shares of the clips that were asked for a tempo."""

    within_2_percent: float
    within_5_percent: float
    octave_errors: float  # a half, double, third or triple of the tempo asked for, within 5 %
    without_beat: float  # no tempo was found
    clips: int


def tempo_adherence(asked_bpm: np.ndarray, measured_bpm: np.ndarray) -> TempoAdherence:
    """How often the tempo measured is the one asked for; both (N,) in beats per minute, 0 measured for no beat.

    Gouyon et al. (2006), https://doi.org/10.1109/TSA.2005.858509, with octave errors told apart, not forgiven.

    Raises:
        ValueError: if the arrays differ in length, are empty, or a tempo asked for is not positive.
    """
    asked, measured = np.asarray(asked_bpm, np.float64), np.asarray(measured_bpm, np.float64)
    if asked.shape != measured.shape or asked.ndim != 1 or not len(asked):
        raise ValueError(f"tempi must be two arrays of one length, not empty, got {asked.shape} and {measured.shape}")
    if not (asked > 0).all():
        raise ValueError("each tempo asked for must be above 0 BPM; leave out clips that were asked for none")
    ratio = measured / asked

    def within(share: float, factor: float = 1.0) -> np.ndarray:
        return np.abs(ratio / factor - 1) <= share + 1e-12

    octave = np.any([within(0.05, factor) for factor in OCTAVES], axis=0) & ~within(0.05)
    return TempoAdherence(
        float(within(0.02).mean()),
        float(within(0.05).mean()),
        float(octave.mean()),
        float((measured <= 0).mean()),
        len(asked),
    )


def key_adherence(asked: Sequence[str], measured: Sequence[str]) -> np.ndarray:
    """MIREX's score (N,) of each key measured for the one asked, both as "Eb major": 1 if they are the same.

    0.5 a fifth above in the same mode, 0.3 the relative key, 0.2 the parallel key, 0 any other, as in ``mir_eval``.

    Raises:
        ValueError: if the lists differ in length or a key cannot be read.
    """
    from mir_eval.key import weighted_score

    return np.array([weighted_score(one, other) for one, other in zip(asked, measured, strict=True)])


def area_under_curve(asked: np.ndarray, strength: np.ndarray) -> float:
    """How surely clips that were asked for something have more of it: the area under the ROC curve.

    The probability that a clip with ``asked`` (N,) true has a higher ``strength`` (N,) than one without, ties counting
    half: 1 always, 0.5 by chance. Used for drums, with `percussive_share` as strength.

    Raises:
        ValueError: if all or none were asked.
    """
    from sklearn.metrics import roc_auc_score

    asked, strength = np.asarray(asked, bool), np.asarray(strength, np.float64)
    if asked.shape != strength.shape or asked.ndim != 1:
        raise ValueError(f"asked and strength must have one length, got {asked.shape} and {strength.shape}")
    if asked.all() or not asked.any():
        raise ValueError(f"{asked.sum()} of {len(asked)} clips were asked for it; some must and some must not")
    return float(roc_auc_score(asked, strength))
