"""How well what is heard agrees with what is true: mir_eval's measures, each from 0 to 1.

Raffel et al. (2014), mir_eval: a transparent implementation of common MIR metrics.
"""

from __future__ import annotations

import warnings

import numpy as np

from benchmarks.control.judges import STEP_S
from benchmarks.control.pieces import SECONDS
from benchmarks.control.truth import Chords

BEAT_S, DRUM_S = 0.07, 0.05  # how far a beat and a drum may be off
ONSETS_S = {"f1_50_ms": 0.05, "f1_100_ms": 0.1}  # of notes


def tempo(heard: dict, bpm: float, beats_s: np.ndarray) -> dict[str, float]:
    """Of what `judges.beats` heard, where beats were asked at ``beats_s (N,)``."""
    import mir_eval

    ratio = heard["bpm"] / bpm
    octaves = min(abs(ratio * factor - 1) for factor in (0.5, 1, 2)) if ratio else 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no beats at all, which is 0
        f = mir_eval.beat.f_measure(beats_s, np.array(heard["times_s"]), f_measure_threshold=BEAT_S)
    return {
        "within_2_percent": float(abs(ratio - 1) <= 0.02),
        "within_5_percent": float(abs(ratio - 1) <= 0.05),
        "within_2_percent_up_to_octaves": float(octaves <= 0.02),
        "beat_f": float(f),
    }


def chords(heard: dict, true: Chords) -> dict[str, float]:
    """Chord symbol recall by either judge: the share of the time in which the major or minor chord is the true one."""
    reference = {"intervals": np.clip(true.intervals, 0, SECONDS), "labels": true.labels}
    names = {"recall": "basic_pitch", "recall_by_madmom": "madmom"}
    return {name: same_chords(reference, heard[judge]) for name, judge in names.items()}


def same_chords(reference: dict, estimate: dict) -> float:
    """Share of the time in which two sequences of ``intervals`` and ``labels`` have the same major or minor chord."""
    import mir_eval

    spans = np.array(reference["intervals"]).reshape(-1, 2)
    found, labels = mir_eval.util.adjust_intervals(
        np.array(estimate["intervals"]).reshape(-1, 2), estimate["labels"], spans.min(), spans.max(), "N", "N"
    )
    merged, a, b = mir_eval.util.merge_labeled_intervals(spans, reference["labels"], found, labels)
    hits = mir_eval.chord.majmin(a, b)
    return float(mir_eval.chord.weighted_accuracy(hits, mir_eval.util.intervals_to_durations(merged)))


def melody(heard: dict, pitches: np.ndarray) -> dict[str, float]:
    """Raw chroma accuracy: the share of the frames with a melody in which the strongest pitch is its, in any octave."""
    import mir_eval

    strongest = np.array(heard["strongest"], float)
    times = [np.arange(len(part)) * STEP_S for part in (pitches, strongest)]
    hertz = [np.where(part > 0, 440 * 2 ** ((part - 69) / 12), 0.0) for part in (pitches, strongest)]
    true_voiced, true_cents, voiced, cents = mir_eval.melody.to_cent_voicing(times[0], hertz[0], times[1], hertz[1])
    return {"chroma_accuracy": float(mir_eval.melody.raw_chroma_accuracy(true_voiced, true_cents, voiced, cents))}


def notes(heard: dict, true: np.ndarray) -> dict[str, float]:
    """F1 of onsets with their pitches, for ``true (N, 2)`` onsets and MIDI pitches."""
    import mir_eval

    if not heard["onsets_s"]:
        return dict.fromkeys(ONSETS_S, 0.0)
    found = np.array([heard["onsets_s"], heard["pitches"]]).T
    intervals = [np.stack([part[:, 0], part[:, 0] + 0.1], axis=1) for part in (true, found)]
    hertz = [440 * 2 ** ((part[:, 1] - 69) / 12) for part in (true, found)]
    told = {}
    for name, tolerance_s in ONSETS_S.items():
        told[name] = mir_eval.transcription.precision_recall_f1_overlap(
            intervals[0], hertz[0], intervals[1], hertz[1], onset_tolerance=tolerance_s, offset_ratio=None
        )[2]
    return {name: float(f) for name, f in told.items()}


def drums(heard: dict, true: dict[str, np.ndarray]) -> dict[str, float]:
    """F1 of the onsets of each drum that plays, and their mean."""
    import mir_eval

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no onsets at all, which is 0
        told = {
            name: float(mir_eval.onset.f_measure(times, np.array(heard[name]), window=DRUM_S)[0])
            for name, times in true.items()
        }
    return {"f1": float(np.mean(list(told.values())))} | told
