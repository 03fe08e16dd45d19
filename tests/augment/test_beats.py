"""Beat tracking: known click tracks, madmom's own results, what is no music, and madmom's compatibility."""

import collections
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mir_eval
import numpy as np
import pytest
import soundfile

from augment import Beats, track_beats
from augment.beats import (
    _in_windows,
    _madmom_activations,
    _madmom_decode,
    _madmom_processors,
    _strongest_phase,
    _viterbi,
)
from augment.madmom_compat import madmom_compatibility, map_to_rows
from tests.helpers.rhythm import drum_track, needs_madmom

RATE = 22050
ROOT = Path(__file__).parents[2]


def f_measure(expected, actual):
    return mir_eval.beat.f_measure(np.asarray(expected), np.asarray(actual))


def python(*arguments, code):
    """Standard output of a fresh interpreter."""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@needs_madmom
@pytest.mark.parametrize(("bpm", "beats_per_bar", "pickup"), [(60, 3, 0), (126.5, 3, 2), (120, 4, 3), (200, 4, 1)])
def test_madmom_finds_the_beats_of_a_drum_track(bpm, beats_per_bar, pickup):
    waveform, beats, downbeats = drum_track(bpm, beats_per_bar, pickup)
    found = track_beats(waveform, RATE)
    assert f_measure(beats, found.times_s) >= 0.95
    assert f_measure(downbeats, found.downbeats_s) >= 0.9
    assert np.isin(found.downbeats_s, found.times_s).all()
    assert found.beats_per_bar == beats_per_bar
    assert found.tempo_bpm == pytest.approx(bpm, rel=2e-3)
    assert 0.3 < found.confidence <= 1


@pytest.mark.parametrize(("bpm", "beats_per_bar"), [(110, 3), (125, 4)])
def test_librosa_finds_the_beats_of_a_drum_track(bpm, beats_per_bar):
    waveform, beats, downbeats = drum_track(bpm, beats_per_bar)
    found = track_beats(waveform.astype(np.float64), RATE, "librosa")
    assert f_measure(beats, found.times_s) >= 0.95
    assert f_measure(downbeats[1:], found.downbeats_s) >= 0.9  # it may miss the very first
    assert found.beats_per_bar == beats_per_bar
    assert found.tempo_bpm == pytest.approx(bpm, rel=1e-2)
    assert 0.1 < found.confidence <= 0.5


@pytest.mark.slow
@needs_madmom
def test_a_recording_gives_what_madmoms_own_processors_give():
    shared = os.environ.get("MUSICLDM_SHARED")
    if not shared:
        pytest.skip("needs recordings: set MUSICLDM_SHARED")
    annotation = np.loadtxt(ROOT / shared / "audio" / "nighttide_waltz.beats")
    waveform, rate = soundfile.read(ROOT / shared / "audio" / "nighttide_waltz.flac", frames=12 * 44100)
    assert rate == 44100  # what madmom needs
    annotation = annotation[annotation[:, 0] < 12]
    found = track_beats(waveform, rate)
    with madmom_compatibility():
        from madmom.features.downbeats import DBNDownBeatTrackingProcessor, RNNDownBeatProcessor

        decoder = DBNDownBeatTrackingProcessor(beats_per_bar=[3, 4], fps=100)
        decoder.map = map_to_rows
        theirs = decoder(RNNDownBeatProcessor()(waveform.astype(np.float32)))
    np.testing.assert_array_equal(found.times_s, theirs[:, 0])
    np.testing.assert_array_equal(found.downbeats_s, theirs[theirs[:, 1] == 1, 0])
    assert f_measure(annotation[:, 0], found.times_s) >= 0.95
    assert found.tempo_bpm == pytest.approx(160.2, rel=2e-3)


@needs_madmom
@pytest.mark.parametrize("certain", [False, True])
def test_decoding_finds_the_path_that_madmom_finds(certain):
    rng = np.random.default_rng(0)
    observations = rng.dirichlet([0.3, 0.3, 3.0], size=400)[:, :2]
    if certain:  # a beat every 0.5 s, and no doubt: log probabilities of minus infinity
        observations = np.zeros((400, 2))
        observations[::50, 0] = observations[::200, 1] = 1.0
        observations[::200, 0] = 0.0
    with madmom_compatibility(), np.errstate(divide="ignore"):
        decoder = _madmom_processors()[-1]
        for model in decoder.hmms:
            path, log_probability = _viterbi(model, observations)
            if not certain:
                their_path, their_log_probability = model.viterbi(observations)
                np.testing.assert_array_equal(path, their_path)
                assert log_probability == pytest.approx(their_log_probability, rel=1e-12)
        beats = decoder(observations)
    if certain:
        np.testing.assert_array_equal(beats[:, 0], np.arange(8) / 2)
        np.testing.assert_array_equal(beats[:, 1], [1, 2, 3, 4, 1, 2, 3, 4])


@needs_madmom
@pytest.mark.parametrize(("between", "once"), [(0.08, True), (0.3, False)])
def test_a_slow_pulse_is_counted_once_unless_beats_are_heard_between(between, once):
    """At 63 BPM madmom's decoder makes 126 of both."""
    activations = np.full((1400, 2), 0.003)
    for k, time_s in enumerate(np.arange(0.2, 13.9, 30 / 63)):
        frame, strength, downbeat = round(100 * time_s), between if k % 2 else 0.55, k % 8 == 0
        activations[frame - 1 : frame + 2, int(downbeat)] = np.array([0.5, 1.0, 0.5]) * strength
    with madmom_compatibility():
        theirs, ours = _madmom_processors()[-1](activations), _madmom_decode(activations)
    assert len(theirs) == 29
    if not once:
        return np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(ours[:, 0], 0.2 + np.arange(15) * 60 / 63, atol=0.021)
    assert ours[:, 1].tolist() == [1, 2, 3, 4] * 3 + [1, 2, 3]


@needs_madmom
def test_windows_change_little():
    waveform, _, _ = drum_track(200, 3)
    with madmom_compatibility():
        whole = _madmom_activations(waveform, RATE)
        parts = _madmom_activations(waveform, RATE, window_s=3, context_s=2)
        front_end, _, _, decoder = _madmom_processors()
        sound = np.random.default_rng(0).normal(0, 0.1, 44100).astype(np.float32)
        windows = _in_windows(front_end, sound, step=441, rows=1, window=30, context=16)
        np.testing.assert_allclose(windows, front_end(sound), atol=1e-5)
        np.testing.assert_array_equal(decoder(parts), decoder(whole))
    assert parts.shape == whole.shape == (600, 2)
    assert np.abs(parts - whole).mean() < 0.01


@pytest.mark.parametrize("length", [1, 9, 10, 49, 50, 51, 100, 1003])
def test_windows_give_every_row_once(length):
    ramp = np.arange(length)
    rows = _in_windows(lambda part: part[::5, None], ramp, step=10, rows=2, window=3, context=2)
    np.testing.assert_array_equal(rows[:, 0], ramp[::5])


def test_strongest_phase_tells_three_from_four():
    assert _strongest_phase(np.array([1, 1, 5, 1, 1, 5, 1, 1, 4, 1.0])) == (3, 2)
    assert _strongest_phase(np.array([1, 5, 1, 1, 1, 4, 1, 1, 1, 5, 1.0])) == (4, 1)
    assert _strongest_phase(np.ones(9)) == (4, 0)
    assert _strongest_phase(np.ones(0)) == (4, 0)


SOUNDS = {
    "silence": (np.zeros(48000), 16000),
    "drone": (0.3 * np.sin(2 * np.pi * 110 * np.arange(48000) / 16000), 16000),
    "one sample": (np.ones(1), 44100),
    "fifth of a second of noise": (np.random.default_rng(0).normal(0, 0.1, 3200), 16000),
    "one click": (np.eye(1, 32000, 16000)[0], 16000),
    "quieter than floats square": (np.random.default_rng(0).normal(0, 1e-30, 16000), 16000),
    "a megahertz": (np.zeros(200_000), 1_000_000),
}


@needs_madmom
@pytest.mark.parametrize("tracker", ["madmom", "librosa"])
@pytest.mark.parametrize("sound", SOUNDS.values(), ids=SOUNDS)
def test_no_beat_is_no_beat(sound, tracker):
    times_s, downbeats_s, *rest = track_beats(*sound, tracker)
    assert len(times_s) == len(downbeats_s) == 0
    assert rest == [0, 0.0, 0.0]


@needs_madmom
@pytest.mark.parametrize("tracker", ["madmom", "librosa"])
@pytest.mark.parametrize("rate", [1000, 7919, 192_000])
def test_noise_gives_beats_without_confidence(rate, tracker):
    found = track_beats(np.random.default_rng(rate).normal(0, 0.1, 2 * rate).astype(np.float16), rate, tracker)
    assert isinstance(found, Beats)
    assert (np.diff(found.times_s) > 0).all()
    assert ((found.times_s >= 0) & (found.times_s <= 2)).all()
    assert found.confidence < 0.25


@pytest.mark.parametrize(
    ("waveform", "rate", "tracker", "message"),
    [
        (np.zeros(9), 16000, "essentia", "unknown beat tracker 'essentia'; choose one of madmom, beat_this, librosa"),
        (np.zeros(9), 999, "madmom", "whole number of Hz from 1000 to 1000000, got 999"),
        (np.zeros(9), np.nan, "madmom", "whole number of Hz"),
        (np.zeros(9), 22050.5, "librosa", "whole number of Hz"),
        (np.zeros((2, 9)), 16000, "librosa", r"mono, \(samples,\), and not empty, got \(2, 9\)"),
        (np.zeros(0), 16000, "madmom", "not empty"),
        (np.zeros(9, dtype=np.int16), 16000, "madmom", "floating point, -1 to 1, got int16"),
        (np.array([0, 0, np.nan, 1]), 1000, "madmom", r"sample 2 \(0.002 s\) is nan"),
        (np.array([0, -np.inf]), 1000, "librosa", "is -inf"),
        (np.array([0, 32767.0]), 1000, "librosa", "sample 1 .* is 32767.0; .* repair or scale it"),
    ],
)
def test_bad_input_is_refused(waveform, rate, tracker, message):
    with pytest.raises(ValueError, match=message):
        track_beats(waveform, rate, tracker)


def test_importing_augment_loads_no_tracker_and_nothing_of_musicldm():
    heavy = ("madmom", "librosa", "beat_this", "musicldm", "torch", "soxr", "scipy")
    assert python(code=f"import sys, augment; print([name for name in {heavy} if name in sys.modules])") == "[]\n"


@pytest.mark.parametrize(("tracker", "remedy"), [("madmom", "make beats"), ("beat_this", "pip install beat_this")])
def test_missing_tracker_says_how_to_get_it(tracker, remedy):
    code = """if True:
        import sys, numpy, augment
        sys.modules[sys.argv[1]] = None
        try:
            augment.track_beats(numpy.zeros(16000), 16000, sys.argv[1])
        except ImportError as error:
            print(error)
    """
    assert remedy in (said := python(tracker, code=code))
    assert "tracker='librosa'" in said


def use_and_fail():
    with madmom_compatibility():
        assert issubclass(collections.MutableSequence, collections.abc.MutableSequence)
        with madmom_compatibility():
            pass
        assert vars(np)["float"] is float
        assert vars(np)["int"] is int
        raise KeyError


def test_compatibility_is_undone():
    before = vars(np).copy(), vars(collections).copy(), sys.modules.get("pkg_resources")
    with pytest.raises(KeyError):
        use_and_fail()
    assert (vars(np), vars(collections), sys.modules.get("pkg_resources")) == before


def test_compatibility_keeps_what_was_there(monkeypatch):
    monkeypatch.setattr(np, "float", np.float32, raising=False)
    with madmom_compatibility():
        assert vars(np)["float"] is np.float32
    assert vars(np)["float"] is np.float32


@needs_madmom
def test_runs_without_pkg_resources():
    code = """if True:
        import sys
        from importlib.machinery import PathFinder

        class WithoutPkgResources(PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                return None if name.startswith("pkg_resources") else super().find_spec(name, path, target)

        sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutPkgResources
        from augment.madmom_compat import madmom_compatibility
        with madmom_compatibility():
            import madmom
        print(madmom.__version__, "pkg_resources" in sys.modules)
    """
    assert python(code=code) == f"{importlib.metadata.version('madmom')} False\n"


@pytest.mark.slow
@needs_madmom
def test_mended_madmom_passes_through(tmp_path):
    def mend(source, target):
        if not source.endswith(".py"):
            return os.symlink(source, target)
        text = Path(source).read_text()
        text = text.replace("from collections import Mutable", "from collections.abc import Mutable")
        text = text.replace("pkg_resources.get_distribution", "importlib.metadata.distribution")
        text = text.replace("import pkg_resources", "import importlib.metadata").replace("del pkg_resources, ", "del ")
        text = text.replace("np.asarray(results)[:, 1]", "[result[1] for result in results]")
        return Path(target).write_text(re.sub(r"\bnp\.(float|int|bool)\b", r"\1", text))

    (installed,) = importlib.util.find_spec("madmom").submodule_search_locations
    shutil.copytree(installed, tmp_path / "madmom", copy_function=mend, ignore=shutil.ignore_patterns("__pycache__"))
    waveform, _, _ = drum_track(150, 4)
    np.save(tmp_path / "waveform.npy", waveform)
    code = """if True:
        import sys
        sys.path.insert(0, sys.argv[1])
        import madmom, numpy  # before anything of ours: the copy needs no help
        assert madmom.__file__.startswith(sys.argv[1])
        from augment import track_beats
        print(*track_beats(numpy.load(sys.argv[1] + "/waveform.npy"), int(sys.argv[2])).times_s)
    """
    assert python(tmp_path, RATE, code=code).split() == [str(time) for time in track_beats(waveform, RATE).times_s]
