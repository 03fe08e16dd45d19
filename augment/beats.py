"""Beats, downbeats, metre and tempo of a recording.

    waveform (L,)  -> onset features or networks ->  activation (T, 2)  -> decoding ->  Beats

The default tracker is madmom's: Boeck, Krebs and Widmer (2016), Joint Beat and Downbeat Tracking with Recurrent Neural
Networks, ISMIR. All trackers process long recordings in windows and keep only a few numbers per frame.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from augment.madmom_compat import madmom_compatibility, map_to_rows

METRES = (3, 4)  # beats per bar
THRESHOLD = 0.05  # activations below this count as none, as in madmom's decoder
SLOWEST_BPM, SLOW_BPM = 55.0, 75.0  # madmom's lower limit, and the tempo up to which it may double a pulse
DOUBLED = 3.0  # ratio of activations at alternate beats that indicates a doubled pulse (4 to 7; otherwise about 2)
FLOOR = -690.0  # log density, about log(1e-300), for probability 0


class Beats(NamedTuple):
    """Beats of a recording; if fewer than two were found, the arrays are empty and the numbers 0."""

    times_s: np.ndarray  # (N,) float64, ascending, from the first sample
    downbeats_s: np.ndarray  # (M,) a subset of times_s
    beats_per_bar: int  # one for the whole recording; 0 if beat_this found no bar
    tempo_bpm: float  # of a straight line fitted to all beats
    confidence: float  # 0 to 1


NO_BEATS = Beats(np.empty(0), np.empty(0), 0, 0.0, 0.0)


def track_beats(waveform: np.ndarray, sample_rate: int, tracker: str = "madmom") -> Beats:
    """Find the beats of ``waveform`` (L,), mono, floating point, about -1 to 1, at ``sample_rate`` Hz.

    For 20 minutes at 16 kHz, ``madmom`` needs 0.5 GB and ``librosa`` 0.3 GB of memory; longer recordings little more.

    Examples:
        >>> import numpy as np
        >>> clicks = np.zeros(16_000 * 8, dtype=np.float32)
        >>> clicks[::8_000] = 0.9  # two in a second
        >>> round(track_beats(clicks, 16_000, tracker="librosa").tempo_bpm)
        120

    Trackers:
        ``madmom``: recurrent networks and a dynamic Bayesian network over 3/4 and 4/4 bars, 55 to 215 BPM, at 100
            frames a second. Pulses below 75 BPM that madmom's decoder doubles against its networks are corrected.
            The confidence is the networks' mean output at the beats. madmom's model files are licensed
            CC BY-NC-SA 4.0: not for commercial use. Installed by ``make beats``.
        ``beat_this``: a transformer (Foscarin, Schlueter and Widmer, 2024), MIT licence; needs
            ``pip install beat_this``, and downloads its weights when it is first used.
        ``librosa``: onset strength and dynamic programming, ISC licence, always available. It finds beats only; metre
            and downbeats are chosen so that downbeats are loudest, and the confidence is at most 0.5.

    Silence, and sound without any beat, give empty `Beats`. Noise may give beats of low confidence.
    A recording has one metre, the more probable one; its tempo may change.

    Raises:
        ValueError: if the tracker is unknown, the waveform is not mono, floating point, finite and in range, or the
            rate is not a whole number of Hz from 1000 to 1,000,000.
        ImportError: if the tracker's package is not installed.
        OSError: if beat_this cannot get its weights.
    """
    if tracker not in TRACKERS:
        raise ValueError(f"unknown beat tracker {tracker!r}; choose one of {', '.join(TRACKERS)}")
    if not 1000 <= sample_rate <= 1_000_000 or sample_rate % 1:
        raise ValueError(
            f"sample_rate must be a whole number of Hz from 1000 to 1000000, got {sample_rate}; resample the recording"
        )
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(f"a waveform must be mono, (samples,), and not empty, got {waveform.shape}; mix its channels")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(f"a waveform must be floating point, -1 to 1, got {waveform.dtype}; divide by its full scale")
    for at in (int(waveform.argmin()), int(waveform.argmax())):  # both find NaN first
        if not abs(waveform[at]) <= 1000:
            raise ValueError(
                f"sample {at} ({at / sample_rate:.3f} s) is {waveform[at]}; a waveform must be finite and lie between "
                "about -1 and 1: repair or scale it"
            )
    if len(waveform) < 0.1 * sample_rate:  # shorter than the frames of some trackers, and than two beats
        return NO_BEATS
    return TRACKERS[tracker](waveform.astype(np.float32, copy=False), int(sample_rate))


def beat_numbers(beats: Beats) -> np.ndarray:
    """Position of each beat in its bar (N,), from 1; 0 if unknown. Beats before the first downbeat count backwards."""
    numbers = np.zeros(len(beats.times_s), dtype=int)
    if not beats.beats_per_bar or not len(beats.downbeats_s):
        return numbers
    firsts = np.searchsorted(beats.times_s, beats.downbeats_s)
    places = np.arange(len(numbers))
    latest = np.searchsorted(firsts, places, side="right") - 1
    numbers = places - firsts[latest.clip(0)]
    return np.where(latest < 0, numbers % beats.beats_per_bar, numbers) + 1


def _madmom(waveform: np.ndarray, sample_rate: int) -> Beats:
    with madmom_compatibility():
        activations = _madmom_activations(waveform, sample_rate)
        beats = _madmom_decode(activations)  # (N, 2): time, position in the bar from 1
    times_s, positions = beats[:, 0], beats[:, 1]
    frames = np.round(times_s * 100).astype(int)
    probability = activations[frames].sum(axis=1)
    if not len(frames) or probability.mean() < THRESHOLD:
        return NO_BEATS
    beats_per_bar = next(metre for metre in METRES if metre >= positions.max())
    return _beats(times_s, positions == 1, beats_per_bar, probability.mean())


def _madmom_activations(waveform: np.ndarray, sample_rate: int, window_s: int = 300, context_s: int = 20) -> np.ndarray:
    """Probabilities of beats other than downbeats, and of downbeats, (T, 2), 100 frames a second.

    Features depend on 8 frames, so that computing them in windows is exact. The networks are recurrent, but sound
    beyond ``context_s`` has little influence.
    """
    front_end, networks, without_rest, _ = _madmom_processors()

    def activate(part: np.ndarray) -> np.ndarray:
        part = _resample(part, sample_rate, 44100)
        features = _in_windows(front_end, part, step=441, rows=1, window=3000, context=16)  # (T, F)
        return without_rest(networks(features))  # (T, 2)

    return _in_windows(activate, waveform, step=sample_rate, rows=100, window=window_s, context=context_s)


def _madmom_decode(activations: np.ndarray) -> np.ndarray:
    """Time and position in the bar (N, 2) of the beats in ``activations`` (T, 2), as madmom's decoder finds them.

    The decoder doubles some slow pulses with even eighths, although the activations between the beats are low. If the
    tempo could be twice a slow one, and every other beat has low activations, decoding is repeated in that range only.
    """
    beats = _madmom_processors()[-1].process(activations)
    if len(beats) < 4:
        return beats
    tempo_bpm = 60 * (len(beats) - 1) / (beats[-1, 0] - beats[0, 0])
    support = activations[np.round(beats[:, 0] * 100).astype(int)].sum(axis=1)
    weak, strong = sorted((support[::2].mean(), support[1::2].mean()))
    if SLOWEST_BPM <= tempo_bpm / 2 <= SLOW_BPM and strong > DOUBLED * weak:
        return _madmom_decoder(max_bpm=4 / 3 * SLOW_BPM).process(activations)
    return beats


@functools.cache
def _madmom_processors() -> tuple:
    """Front end, networks, selection of outputs, and decoder; each takes the output of the one before it."""
    try:
        from madmom.features.downbeats import RNNDownBeatProcessor
    except ImportError as error:
        raise ImportError("tracker 'madmom' needs madmom: run `make beats`, or choose tracker='librosa'") from error
    return *RNNDownBeatProcessor(), _madmom_decoder()


@functools.cache
def _madmom_decoder(max_bpm: float = 215.0):
    from madmom.features.downbeats import DBNDownBeatTrackingProcessor

    decoder = DBNDownBeatTrackingProcessor(beats_per_bar=list(METRES), fps=100, min_bpm=SLOWEST_BPM, max_bpm=max_bpm)
    decoder.map = lambda _, tasks: map_to_rows(lambda task: _viterbi(*task), tasks)
    return decoder


def _viterbi(model, observations: np.ndarray) -> tuple[np.ndarray, float]:
    """The best path (T,) through madmom's hidden Markov model for ``observations`` (T, 2), and its log probability.

    The result is that of ``model.viterbi``, which stores T x S back pointers for S states: 7 GB for 20 minutes. Within
    a beat, a state has only one predecessor; only the J first states of beats (1 in 60) have more and need a pointer.
    """
    transitions, emissions = model.transition_model, model.observation_model
    start = transitions.pointers[:-1].astype(np.intp)  # (S,) where the predecessors of each state begin
    count = np.diff(transitions.pointers.astype(np.intp))
    joins = np.flatnonzero(count > 1)  # (J,)
    candidate = np.arange(count.max())  # (K,)
    edges = start[joins, None] + np.where(candidate < count[joins, None], candidate, 0)  # (J, K)
    join_from, join_log_p = transitions.states[edges].astype(np.intp), transitions.log_probabilities[edges]
    only_from, only_log_p = transitions.states[start].astype(np.intp), transitions.log_probabilities[start]
    join_of = np.full(len(start), -1)
    join_of[joins] = np.arange(len(joins))

    densities = np.nan_to_num(emissions.log_densities(observations), nan=FLOOR, neginf=FLOOR)  # (T, 3)
    scores = np.log(model.initial_distribution)  # (S,)
    back = np.empty((len(densities), len(joins)), dtype=np.min_scalar_type(len(candidate)))
    for frame, density in enumerate(densities):
        density = density[emissions.pointers]  # (S,)
        at_joins = scores[join_from] + join_log_p + density[joins, None]  # (J, K)
        best = back[frame] = at_joins.argmax(axis=1)
        scores = scores[only_from] + only_log_p + density
        scores[joins] = at_joins[np.arange(len(joins)), best]

    path = np.empty(len(densities), dtype=np.intp)
    state = int(scores.argmax())
    log_probability = float(scores[state])
    for frame in range(len(path) - 1, -1, -1):
        path[frame] = state
        join = join_of[state]
        state = only_from[state] if join < 0 else join_from[join, back[frame, join]]
    return path, log_probability


def _librosa(waveform: np.ndarray, sample_rate: int) -> Beats:
    import librosa

    settings = {"sr": 22050, "hop_length": 441}  # 50 frames a second

    def mel(part: np.ndarray) -> np.ndarray:
        return librosa.feature.melspectrogram(y=_resample(part, sample_rate, 22050), **settings).T

    energy = _in_windows(mel, waveform, step=sample_rate, rows=50, window=30, context=1)  # (T, F)
    onsets = librosa.onset.onset_strength(S=librosa.power_to_db(energy.T), aggregate=np.median, **settings)  # (T,)

    def periods(part: np.ndarray) -> np.ndarray:
        return librosa.feature.tempogram(onset_envelope=part, win_length=400, **settings).T.astype(np.float32)

    # As beat_track estimates it, from 8 s about each frame, but without all of these in memory at once.
    tempogram = _in_windows(periods, onsets, step=1, rows=1, window=3000, context=400).mean(axis=0)
    bpm = librosa.feature.tempo(tg=tempogram[:, None], **settings)
    _, frames = librosa.beat.beat_track(onset_envelope=onsets, bpm=bpm, **settings)
    frames = np.asarray(frames, dtype=int)
    loudness = np.sqrt(energy.sum(axis=1))
    near = (frames[:, None] + [-1, 0, 1]).clip(0, len(loudness) - 1)  # (N, 3) frames that overlap the attack
    beats_per_bar, phase = _strongest_phase(loudness[near].max(axis=1))
    is_downbeat = np.arange(len(frames)) % beats_per_bar == phase
    return _beats(frames / 50, is_downbeat, beats_per_bar, 0.5 * _likeness_a_beat_apart(onsets, frames))


def _likeness_a_beat_apart(onsets: np.ndarray, frames: np.ndarray) -> float:
    """Correlation of onset strength (T,) with itself one beat later; ``frames`` (N,) are the beats.

    A measure of the regularity of the pulse, since this method gives no probabilities.
    """
    if len(frames) < 2:
        return 0.0
    lag = round((frames[-1] - frames[0]) / (len(frames) - 1))
    deviation = onsets - onsets.mean()
    return float(deviation[lag:] @ deviation[:-lag] / (deviation @ deviation))


def _strongest_phase(strength: np.ndarray) -> tuple[int, int]:
    """Beats per bar and index of the first downbeat for which the downbeats stand out most in ``strength`` (N,).

    Differences of means are weighted by the square root of the counts, as in a t-test, so that bars of 3 and 4 beats
    can be compared. Without any difference the result is 4/4 from the first beat.
    """
    best, answer = 1e-6, (4, 0)
    for beats_per_bar in (4, 3):
        for phase in range(beats_per_bar):
            is_downbeat = np.arange(len(strength)) % beats_per_bar == phase
            on, off = strength[is_downbeat], strength[~is_downbeat]
            if len(on) and len(off) and (contrast := (on.mean() - off.mean()) * np.sqrt(len(on) * len(off))) > best:
                best, answer = contrast, (beats_per_bar, phase)
    return answer


def _beat_this(waveform: np.ndarray, sample_rate: int) -> Beats:
    network, decode = _beat_this_model()
    import torch

    def spectrogram(part: np.ndarray) -> np.ndarray:
        return network.signal2spect(part, sample_rate).numpy()

    mel = _in_windows(spectrogram, waveform, step=sample_rate, rows=50, window=30, context=1)  # (T, F)
    beat, downbeat = network.spect2frames(torch.from_numpy(mel))  # (T,) logits each
    times_s, downbeats_s = decode(beat, downbeat)
    lengths = np.diff(np.searchsorted(times_s, downbeats_s))  # (M - 1,) beats in each bar
    beats_per_bar = int(np.bincount(lengths).argmax()) if len(lengths) else 0
    frames = np.floor(times_s * 50).astype(int)  # the decoder averages neighbouring frames
    return _beats(times_s, np.isin(times_s, downbeats_s), beats_per_bar, float(torch.sigmoid(beat)[frames].mean()))


@functools.cache
def _beat_this_model() -> tuple:
    try:
        from beat_this.inference import Audio2Frames
        from beat_this.model.postprocessor import Postprocessor
    except ImportError as error:
        raise ImportError(
            "tracker 'beat_this' needs beat_this: run `pip install beat_this`, or choose tracker='librosa'"
        ) from error
    try:
        return Audio2Frames("final0"), Postprocessor("minimal")
    except ValueError as error:  # beat_this raises it for all failed downloads
        raise OSError(
            "beat_this could not download its weights, which its first use needs: connect to a network, put the file "
            "beat_this-final0.ckpt into torch's hub cache, or choose tracker='librosa'"
        ) from error


TRACKERS = {"madmom": _madmom, "beat_this": _beat_this, "librosa": _librosa}


def load_tracker(tracker: str) -> None:
    """Load and compile what ``tracker`` needs. Call it first in each of several processes that track beats.

    Processes that compile librosa's functions at the same time leave a broken cache, with which later calls crash
    (librosa 0.11, numba 0.68). Here they wait for one another.

    Raises:
        ImportError: if its package is not installed.
        OSError: if beat_this cannot get its weights.
    """
    if tracker == "madmom":
        with madmom_compatibility():
            _madmom_processors()
    elif tracker == "beat_this":
        _beat_this_model()
    else:
        _compile_librosa()


@functools.cache
def _compile_librosa() -> None:
    from filelock import FileLock

    with FileLock(Path(tempfile.gettempdir(), f"augment-librosa-{getattr(os, 'getuid', int)()}.lock")):
        _librosa(np.random.default_rng(0).normal(0, 0.1, 44100).astype(np.float32), 22050)


def _beats(times_s: np.ndarray, is_downbeat: np.ndarray, beats_per_bar: int, confidence: float) -> Beats:
    """`Beats` from times and marks (N,); none from fewer than two, which have no tempo."""
    if len(times_s) < 2:
        return NO_BEATS
    # A line through all beats: with the first and the last beat alone, their errors would enter the tempo.
    interval_s = np.polyfit(np.arange(len(times_s)), times_s, 1)[0]
    return Beats(
        times_s, times_s[is_downbeat], beats_per_bar, float(60 / interval_s), float(np.clip(confidence, 0.0, 1.0))
    )


def _resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    if from_rate == to_rate:
        return waveform
    import soxr

    return soxr.resample(waveform, from_rate, to_rate, quality="HQ")


def _in_windows(
    function: Callable[[np.ndarray], np.ndarray], waveform: np.ndarray, step: int, rows: int, window: int, context: int
) -> np.ndarray:
    """``function(waveform)``, (T, F), for a function that gives ``rows`` rows for every ``step`` samples.

    It is called for ``window`` steps at a time, with ``context`` steps more on either side whose rows are dropped.
    """
    parts, start = [], 0
    while (stop := start + window + context) * step < len(waveform):
        before = min(start, context)
        part = function(waveform[(start - before) * step : stop * step])
        parts.append(part[before * rows : (before + window) * rows])
        start += window
    before = min(start, context)
    parts.append(function(waveform[(start - before) * step :])[before * rows :])
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
