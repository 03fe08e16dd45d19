"""Tempo: measured, compared with the tempo asked for, and the first downbeat of a loop.

    waveform (L,) or (A, L) -> beat tracker -> Tempo -> speed that makes it the tempo asked for, octaves apart

Half and double tempi are equivalent: a tracker may count every second beat of music at 120 BPM, and report 60 BPM.
"""

from __future__ import annotations

import math
import threading
import warnings
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from augment import track_beats
from augment.beats import NO_BEATS

LIMIT = 0.08  # largest relative change of speed; more is audible
WITHIN = 0.02  # tolerance of the tempo asked for
SLOWEST_BPM, FASTEST_BPM = 20.0, 300.0  # limits of the tempo asked for
CONTEXT_S = 4.0  # of a loop's neighbouring turns that the tracker gets too
EARLIER_S = 0.01  # how far before a beat its attack may begin
_one_at_a_time = threading.Lock()  # madmom's networks have a state


class Tempo(NamedTuple):
    """The result of a beat tracker; without beats, tempo and confidence are 0."""

    bpm: float  # as it was counted
    beats_s: np.ndarray  # (N,) ascending, from the first sample
    downbeats_s: np.ndarray  # (M,) a subset of them
    beats_per_bar: int
    confidence: float  # 0 to 1
    tracker: str


def choose_tracker() -> str:
    """The tracker for measuring tempo: madmom if it is installed, otherwise librosa, with a warning."""
    if find_spec("madmom"):
        return "madmom"
    warnings.warn(
        "madmom is not installed, librosa tracks the beats, less accurately: `make beats` installs madmom",
        stacklevel=3,
    )
    return "librosa"


def measure_tempo(waveform: np.ndarray, rate: int, loop: bool = False, tracker: str | None = None) -> Tempo:
    """Tempo and beats of ``waveform`` (L,) or (A, L) at ``rate`` Hz; a ``loop`` is tracked as if played repeatedly.

    ``tracker`` is one of `augment.track_beats`; by default madmom if it is installed, otherwise librosa with a warning.

    Raises:
        ValueError, ImportError: as `augment.track_beats`.
    """
    tracker = tracker or choose_tracker()
    mono = np.asarray(waveform, dtype=np.float32)
    mono = mono.mean(axis=0) if mono.ndim == 2 else mono
    length_s, before = len(mono) / rate, 0
    if loop and len(mono):
        before = min(len(mono), round(CONTEXT_S * rate))
        mono = np.concatenate([mono[-before:], mono, mono[:before]])
    with _one_at_a_time:
        beats = track_beats(mono, rate, tracker) if len(mono) else NO_BEATS
    times_s, downbeats_s = beats.times_s - before / rate, beats.downbeats_s - before / rate
    return Tempo(
        beats.tempo_bpm,
        times_s[(times_s >= 0) & (times_s < length_s)],
        downbeats_s[(downbeats_s >= 0) & (downbeats_s < length_s)],
        beats.beats_per_bar,
        beats.confidence,
        tracker,
    )


def speed_to(asked_bpm: float, measured_bpm: float, compound: bool = False) -> float:
    """How many times as fast music of ``measured_bpm`` must be played to have ``asked_bpm``, octaves apart.

    The one nearest 1; infinity for music without a beat. In ``compound`` meters, such as 6/8, three beats may have been
    counted as one.
    """
    if not measured_bpm > 0:
        return math.inf
    octaves = [math.log2(asked_bpm / measured_bpm) - (math.log2(3) if three else 0) for three in range(1 + compound)]
    return 2 ** min((value - round(value) for value in octaves), key=abs)


def in_reach(speed: float) -> bool:
    """Whether music may be played so many times as fast without it being heard: 8 % more or less."""
    return abs(speed - 1) <= LIMIT


def is_tempo(asked_bpm: float, measured_bpm: float, compound: bool = False) -> bool:
    """Whether ``measured_bpm`` is within 2 % of the tempo asked for, octaves apart."""
    return abs(speed_to(asked_bpm, measured_bpm, compound) - 1) <= WITHIN


def bar_start_s(tempo: Tempo, length_s: float, bars: int) -> float:
    """Where in a loop of ``bars`` bars, ``length_s`` seconds long, a bar begins; 0 without a beat.

    All beats together give the places of the beats, which are evenly spaced round the loop, and all downbeats together
    say which of them is the first of a bar.
    """
    n_beats = round(tempo.bpm * length_s / 60)
    if n_beats < 1 or not len(tempo.beats_s):
        return 0.0
    period_s = length_s / n_beats
    turns = np.exp(2j * np.pi * tempo.beats_s / period_s)
    phase_s = float(np.angle(turns.mean()) / (2 * np.pi) % 1) * period_s
    per_bar = n_beats // bars if n_beats % bars == 0 else max(tempo.beats_per_bar, 1)
    places = np.round((tempo.downbeats_s - phase_s) / period_s).astype(int) % per_bar
    first = int(np.bincount(places, minlength=per_bar).argmax())
    return (phase_s + first * period_s) % length_s


def attack_sample(loop: np.ndarray, rate: int, at_s: float) -> int:
    """The sample of ``loop`` (L,) or (A, L) to begin with for a beat at ``at_s``: where it is quietest just before it.

    At most 10 ms earlier, so that the attack of the first note is not left at the end of the loop.
    """
    energy = np.square(np.atleast_2d(loop).astype(np.float64)).sum(axis=0)  # (L,)
    width, reach = max(1, rate // 1000), round(EARLIER_S * rate)
    first = round(at_s * rate) - reach
    near = energy[np.arange(first, first + reach + width) % len(energy)]
    sums = np.convolve(near, np.ones(width), "valid")  # (reach + 1,) of a millisecond each
    return (first + int(sums.argmin())) % len(energy)
