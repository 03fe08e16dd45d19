"""What is heard in music, by other people's software, none of which is part of a model that is judged.

    waveform (L,) at any rate -> beats | chords | notes and strongest pitch | drums, as dictionaries ready for JSON

Beats: madmom's networks (Boeck et al., 2016). Notes: Basic Pitch (Bittner et al., 2022,
https://arxiv.org/abs/2203.09893), whose network also says which pitch is the strongest at each moment. Chords: triads
over the pitches of that network, and madmom's deep chroma and conditional random field (Korzeniowski and Widmer, 2016,
https://arxiv.org/abs/1612.05065). Drums: rises of three bands of the spectrum, since no network for drums can be
installed beside the package.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import soxr
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from augment import track_beats
from augment.madmom_compat import madmom_compatibility

NEEDED = {  # package: how it is installed
    "madmom": "make beats",
    "mir_eval": "pip install mir_eval",
    "basic_pitch": "pip install --no-deps basic-pitch",
    "onnxruntime": "pip install --no-deps onnxruntime",
    "pretty_midi": "pip install --no-deps pretty_midi six importlib_resources",
    "resampy": "pip install --no-deps resampy",
}
MADMOM_RATE = 44_100
LOWEST_PITCH = 21  # MIDI, of Basic Pitch's first column
THRESHOLDS, SHORTEST_S = (0.5, 0.3), 0.1277  # of onsets and notes, and of a note: Basic Pitch's own
STEP_S = 0.02
ROOTS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
TRIADS = {"maj": (0, 4, 7), "min": (0, 3, 7)}
CHORD_SPAN_S, CHORD_SHARPNESS, CHORD_STAYS = 0.5, 12.0, 0.99  # smoothing; of a fit; probability in the next frame
MELODY = (60, 96)  # MIDI pitches among which the strongest is looked for
DRUM_RATE, DRUM_FRAME, DRUM_HOP = 16_000, 1024, 80
DRUM_LAG, DRUM_GAP, DRUM_AROUND = (
    5,
    11,
    201,
)  # frames: over which a band rises, between onsets, that a rise stands out of
DRUM_PEAK = 0.7  # of the waveform, which the floors below refer to


class Band(NamedTuple):
    """How a drum is looked for: all numbers were chosen on renderings of the training pieces."""

    low_hz: float
    high_hz: float
    floor: float  # added to amplitudes, relative to full scale
    whole: bool  # the level of the band as a whole rises, else the mean of the rises of its bins
    rise: float  # of the natural logarithm, above what is usual around


DRUM_BANDS = {
    "kick": Band(40.0, 110.0, 1e-2, False, 0.4),
    "snare": Band(200.0, 4000.0, 1e-3, False, 0.2),
    "cymbals": Band(5000.0, 7900.0, 1e-3, True, 0.2),
}


def check_installed() -> None:
    """ImportError with one line that names what the judges lack, and how it is installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        ways = "; ".join(dict.fromkeys(NEEDED[name] for name in missing))
        raise ImportError(f"the judges of this benchmark need {', '.join(missing)}: run `{ways}`")


def beats(waveform: np.ndarray, rate: int) -> dict:
    """``times_s`` of the beats, ``downbeats_s`` and ``bpm``; 0 where no beat is heard."""
    found = track_beats(np.asarray(waveform, np.float32), rate)
    return {
        "times_s": found.times_s.round(4).tolist(),
        "downbeats_s": found.downbeats_s.round(4).tolist(),
        "bpm": found.tempo_bpm,
    }


def chords(waveform: np.ndarray, rate: int) -> dict:
    """Chords by ``basic_pitch`` and by ``madmom``: their ``intervals`` [start_s, end_s] and ``labels``, for mir_eval.

    madmom's are what is usual for recordings; where a vocoder blurs the sound it hears other chords, or none. Basic
    Pitch's are triads over the pitch classes that its network hears, decoded by Viterbi's algorithm.
    """
    return {"basic_pitch": _chords_of_pitches(waveform, rate), "madmom": _chords_of_madmom(waveform, rate)}


def _chords_of_pitches(waveform: np.ndarray, rate: int) -> dict:
    from librosa.sequence import transition_loop, viterbi_discriminative

    heard = _basic_pitch(waveform, rate)["note"].T  # (88, T)
    frames_per_s = heard.shape[1] / (len(waveform) / rate)
    classes = np.zeros((12, heard.shape[1]))
    np.add.at(classes, (np.arange(len(heard)) + LOWEST_PITCH) % 12, heard)
    classes = uniform_filter1d(classes, round(CHORD_SPAN_S * frames_per_s), axis=1)
    classes /= np.maximum(np.linalg.norm(classes, axis=0), 1e-9)
    names = [(root, kind) for kind in TRIADS for root in range(12)]
    templates = np.array([np.isin(np.arange(12), (np.array(TRIADS[kind]) + root) % 12) for root, kind in names])
    fits = np.exp(CHORD_SHARPNESS * (templates / 3**0.5) @ classes)
    path = viterbi_discriminative(fits / fits.sum(axis=0), transition_loop(len(names), CHORD_STAYS))
    edges = np.concatenate([[0], np.flatnonzero(np.diff(path)) + 1, [len(path)]])
    return {
        "intervals": (np.stack([edges[:-1], edges[1:]], axis=1) / frames_per_s).round(4).tolist(),
        "labels": [f"{ROOTS[names[path[edge]][0]]}:{names[path[edge]][1]}" for edge in edges[:-1]],
    }


def _chords_of_madmom(waveform: np.ndarray, rate: int) -> dict:
    with madmom_compatibility():
        from madmom.audio.signal import Signal

        features, decode = _chord_recognizer()
        heard = decode(features(Signal(_at(waveform, rate, MADMOM_RATE), sample_rate=MADMOM_RATE)))
    return {
        "intervals": [[round(float(start), 4), round(float(end), 4)] for start, end, _ in heard],
        "labels": [str(label) for _, _, label in heard],
    }


@functools.cache
def _chord_recognizer() -> tuple:
    from madmom.audio.chroma import DeepChromaProcessor
    from madmom.features.chords import DeepChromaChordRecognitionProcessor

    return DeepChromaProcessor(), DeepChromaChordRecognitionProcessor()


def notes(waveform: np.ndarray, rate: int) -> dict:
    """``onsets_s`` and ``pitches`` (MIDI) of the notes, and the ``strongest`` pitch every `STEP_S`."""
    with quiet_imports():
        from basic_pitch.constants import AUDIO_SAMPLE_RATE, FFT_HOP
        from basic_pitch.note_creation import model_frames_to_time, output_to_notes_polyphonic

    heard = _basic_pitch(waveform, rate)
    shortest = round(SHORTEST_S * AUDIO_SAMPLE_RATE / FFT_HOP)  # frames
    found = output_to_notes_polyphonic(
        heard["note"].copy(), heard["onset"].copy(), *THRESHOLDS, shortest, True, None, None
    )
    times_s = model_frames_to_time(len(heard["note"]))
    low, high = (pitch - LOWEST_PITCH for pitch in MELODY)
    strongest = heard["note"][:, low : high + 1].argmax(axis=1) + MELODY[0]
    steps = np.arange(0, len(waveform) / rate, STEP_S)
    nearest = np.clip(np.searchsorted(times_s, steps), 0, len(times_s) - 1)
    return {
        "onsets_s": [round(float(times_s[first]), 4) for first, *_ in sorted(found)],
        "pitches": [int(pitch) for _, _, pitch, _ in sorted(found)],
        "strongest": strongest[nearest].tolist(),
    }


def _basic_pitch(waveform: np.ndarray, rate: int) -> dict[str, np.ndarray]:
    """Basic Pitch's ``note``, ``onset`` (T, 88) and ``contour`` (T, 264) of a waveform."""
    with quiet_imports():
        from basic_pitch.constants import AUDIO_N_SAMPLES, AUDIO_SAMPLE_RATE, FFT_HOP
        from basic_pitch.inference import unwrap_output, window_audio_file

    overlap = 30  # frames of neighbouring windows, as in its own command
    samples = _at(waveform, rate, AUDIO_SAMPLE_RATE)
    padded = np.concatenate([np.zeros(overlap * FFT_HOP // 2, np.float32), samples])
    windows = [window for window, _ in window_audio_file(padded, AUDIO_N_SAMPLES - overlap * FFT_HOP)]
    made = _basic_pitch_session().run(
        [f"StatefulPartitionedCall:{i}" for i in range(3)], {"serving_default_input_2:0": np.stack(windows)}
    )
    names = ("contour", "note", "onset")
    return {name: unwrap_output(part, len(samples), overlap) for name, part in zip(names, made, strict=True)}


@functools.cache
def _basic_pitch_session():
    import onnxruntime

    with quiet_imports():
        from basic_pitch import FilenameSuffix, build_icassp_2022_model_path

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = build_icassp_2022_model_path(FilenameSuffix.onnx)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def drums(waveform: np.ndarray, rate: int) -> dict:
    """Onsets in seconds of ``kick``, ``snare`` and ``cymbals``: sudden rises of their bands."""
    import librosa

    samples = _at(waveform, rate, DRUM_RATE)
    samples = samples * (DRUM_PEAK / max(float(np.abs(samples).max(initial=0.0)), 1e-6))
    amplitudes = np.abs(librosa.stft(samples, n_fft=DRUM_FRAME, hop_length=DRUM_HOP)) / (DRUM_FRAME / 4)  # (K, T)
    frequencies = np.fft.rfftfreq(DRUM_FRAME, 1 / DRUM_RATE)
    found = {}
    for name, band in DRUM_BANDS.items():
        part = amplitudes[(frequencies >= band.low_hz) & (frequencies <= band.high_hz)]
        if band.whole:
            part = np.sqrt(np.square(part).sum(axis=0, keepdims=True))
        level = np.log(part + band.floor)
        rise = np.zeros(level.shape[1])
        rise[DRUM_LAG:] = np.maximum(level[:, DRUM_LAG:] - level[:, :-DRUM_LAG], 0).mean(axis=0)
        highest = rise == maximum_filter1d(rise, DRUM_GAP)
        peaks = np.flatnonzero(highest & (rise > uniform_filter1d(rise, DRUM_AROUND) + band.rise))
        found[name] = (peaks * DRUM_HOP / DRUM_RATE).round(4).tolist()
    return found


def _at(waveform: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """``waveform (L,)`` as float32 at another rate."""
    waveform = np.asarray(waveform, np.float32)
    return waveform if rate == wanted else soxr.resample(waveform, rate, wanted, quality="HQ")


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Inside, nothing below an error is logged: Basic Pitch warns of each way to run it that is not there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
