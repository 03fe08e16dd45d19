"""Adherence to prompts: attributes asked for (tempo, key, drums) compared with attributes measured.

Conventions: tempi are in beats per minute; keys are named as in "Eb major"; entry i of every array belongs to clip i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

OCTAVES = (1 / 3, 1 / 2, 2.0, 3.0)  # ratios at which a tracker has counted another metrical level


class TempoAdherence(NamedTuple):
    """Shares, from 0 to 1, of the clips that were asked for a tempo."""

    within_2_percent: float
    within_5_percent: float
    octave_errors: float  # within 5 % of a half, double, third or triple of the tempo asked for
    without_beat: float  # no tempo was found
    clips: int  # how many clips were asked for a tempo


def tempo_adherence(asked_bpm: np.ndarray, measured_bpm: np.ndarray) -> TempoAdherence:
    """How often the measured tempo is the one asked for.

    After Gouyon et al. (2006), https://doi.org/10.1109/TSA.2005.858509, with octave errors counted separately.

    Args:
        asked_bpm: tempi asked for (N,), beats per minute.
        measured_bpm: tempi measured (N,), beats per minute; 0 where no beat was found.

    Examples:
        >>> found = tempo_adherence(asked_bpm=[120, 120, 90, 90], measured_bpm=[121, 60, 93, 0])
        >>> found.within_2_percent, found.within_5_percent, found.octave_errors, found.without_beat
        (0.25, 0.5, 0.25, 0.25)

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
    """MIREX scores (N,) of measured keys, each compared with the key asked for.

    1 for the same key, 0.5 for a fifth above in the same mode, 0.3 for the relative key, 0.2 for the parallel key, 0
    for any other, as in ``mir_eval.key.weighted_score``.

    Examples:
        >>> key_adherence(["C major", "C major", "C major"], ["C major", "A minor", "F# major"]).tolist()
        [1.0, 0.3, 0.0]

    Raises:
        ValueError: if the lists differ in length or a key cannot be read.
    """
    from mir_eval.key import weighted_score

    return np.array([weighted_score(one, other) for one, other in zip(asked, measured, strict=True)])


def area_under_curve(asked: np.ndarray, strength: np.ndarray) -> float:
    """Area under the ROC curve: how well ``strength`` separates clips that were asked for something from the others.

    The probability that a clip with ``asked`` true has a higher strength than one without; ties count half. 1 is
    perfect, 0.5 is chance. `summarize` uses it for drums, with `percussive_share` as strength.

    Args:
        asked: true for clips that were asked for it (N,).
        strength: how much of it was measured (N,).

    Examples:
        >>> area_under_curve(asked=[True, True, False, False], strength=[0.9, 0.4, 0.4, 0.1])
        0.875

    Raises:
        ValueError: if the arrays differ in length, or all or none were asked.
    """
    from sklearn.metrics import roc_auc_score

    asked, strength = np.asarray(asked, bool), np.asarray(strength, np.float64)
    if asked.shape != strength.shape or asked.ndim != 1:
        raise ValueError(f"asked and strength must have one length, got {asked.shape} and {strength.shape}")
    if asked.all() or not asked.any():
        raise ValueError(f"{asked.sum()} of {len(asked)} clips were asked for it; some must and some must not")
    return float(roc_auc_score(asked, strength))
