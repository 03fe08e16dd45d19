"""Renderings: what the metadata says is what is heard; the folder does not depend on workers or interruptions."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile

from musicldm.scores.general_midi import ORCHESTRATIONS
from musicldm.scores.rendering import RenderConfig, find_scores, orchestrations, render_scores
from musicldm.scores.splits import drawn_split
from musicldm.scores.synthesis import (
    BACKENDS,
    Effects,
    check_backend,
    check_soundfont,
    find_soundfont,
    synthesize,
)
from tests.helpers.scores import band, lacking, needs, small_soundfont, synthesizer, system_soundfont, write_score  # noqa: F401  (fixtures)

EXACT = {"tempo_range": (1.0, 1.0), "transpose_range": (0, 0), "program_share": 0.0}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def config(synthesizer) -> RenderConfig:  # noqa: F811
    backend, soundfont = synthesizer
    return RenderConfig(backend=backend, soundfonts=(soundfont,), clip_s=5.0, max_clips=2)


def pitch_hz(audio: np.ndarray, rate: int, about: float) -> float:
    """The strongest frequency within a fourth of ``about``."""
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 8 * len(audio)))
    hz = np.fft.rfftfreq(8 * len(audio), 1 / rate)
    return float(hz[np.argmax(spectrum * ((hz > about / 1.33) & (hz < about * 1.33)))])


def test_the_pitch_that_is_heard_is_the_transposed_one(tmp_path, config):
    score = write_score(tmp_path / "a.mid", [(at, 4, 69, 0) for at in range(0, 40, 4)], programs={0: 73})
    report = render_scores([score], tmp_path / "out", replace(config, variants=6, max_clips=1, program_share=0.0))
    found = rows(tmp_path / "out")
    assert report.written == len(found) == 6
    assert len({row["transpose_semitones"] for row in found}) > 2
    for row in found:
        audio, rate = soundfile.read(tmp_path / "out" / row["file_name"])
        assert row["mean_pitch_midi"] == 69 + row["transpose_semitones"]
        expected = 440 * 2 ** (row["transpose_semitones"] / 12)
        assert pitch_hz(audio[rate : 4 * rate], rate, expected) == pytest.approx(expected, rel=0.012)


def test_the_tempo_that_is_heard_is_the_changed_one(tmp_path, config):
    score = write_score(tmp_path / "a.mid", [(at, 0.2, 37, 9) for at in range(60)], bpm=100.0)
    render_scores([score], tmp_path / "out", replace(config, variants=3, max_clips=1, clip_s=10.0, program_share=0.0))
    found = rows(tmp_path / "out")
    assert len({row["tempo_bpm"] for row in found}) == 3
    for row in found:
        assert row["tempo_bpm"] == pytest.approx(100 * row["tempo_factor"], abs=0.06)
        audio, rate = soundfile.read(tmp_path / "out" / row["file_name"])
        hop = rate // 100
        power = np.square(audio[: len(audio) // hop * hop]).reshape(-1, hop).mean(axis=1)
        rises = np.flatnonzero((power[1:] > 0.1 * power.max()) & (power[:-1] < 0.02 * power.max()))
        beats = round((rises[-1] - rises[0]) / np.median(np.diff(rises)))
        assert beats > 10
        assert 6000 * beats / (rises[-1] - rises[0]) == pytest.approx(row["tempo_bpm"], rel=0.005)


def test_a_window_sounds_as_in_the_whole(tmp_path, synthesizer):  # noqa: F811
    from musicldm.scores.reading import read_score

    score = read_score(band(tmp_path / "a.mid"))
    soundfont = Path(synthesizer.soundfont)
    settings = {"sample_rate": 24_000, "effects": Effects(0.0, 0.4, 0.0), "backend": synthesizer.backend}
    (whole,) = synthesize(score, [(0.0, 12.0)], soundfont, **settings)
    later, cut = synthesize(score, [(4.0, 8.0), (8.0, 12.0)], soundfont, **settings)
    for piece, at in ((later, 4.0), (cut, 8.0)):
        assert piece.shape == (4 * 24_000, 2)
        # Bars start together here; what still rings from before is all that a window lacks.
        reference = whole[round(at * 24_000) :][: len(piece)]
        assert np.corrcoef(piece[12_000:, 0], reference[12_000:, 0])[0, 1] > 0.95


def test_clips_are_below_full_scale_16_bit_mono_flac_of_the_asked_length(tmp_path, config):
    scores = [band(tmp_path / f"{name}.mid") for name in "ab"]
    render_scores(scores, tmp_path / "out", replace(config, variants=2, sample_rate=22_050))
    found = rows(tmp_path / "out")
    assert len(found) == 8
    peaks = []
    for row in found:
        info = soundfile.info(tmp_path / "out" / row["file_name"])
        assert (info.format, info.subtype, info.channels, info.samplerate) == ("FLAC", "PCM_16", 1, 22_050)
        assert info.frames == round(5.0 * 22_050) == round(row["duration_s"] * 22_050)
        peaks.append(np.abs(soundfile.read(tmp_path / "out" / row["file_name"])[0]).max())
    assert 0.35 < min(peaks) <= max(peaks) < 0.9
    assert len(set(np.round(peaks, 4))) == 8


def test_whole_pieces_in_stereo_lose_their_silences(tmp_path, config):
    notes = [(at, 1, 60, 0) for at in [*range(8), *range(48, 56)]]
    score = write_score(tmp_path / "a.mid", notes, programs={0: 16})
    render_scores([score], tmp_path / "out", replace(config, clip_s=None, channels=2, **EXACT))
    (row,) = rows(tmp_path / "out")
    audio, rate = soundfile.read(tmp_path / "out" / row["file_name"])
    assert audio.shape == (round(row["duration_s"] * rate), 2)
    assert 8.0 < row["duration_s"] < 11.0  # of 28 s, of which 8 s are music


def test_clips_avoid_silence(tmp_path, config):
    notes = [(at, 0.9, 60 + at % 5, 0) for at in [*range(20), *range(60, 80)]]
    score = write_score(tmp_path / "a.mid", notes, programs={0: 16})
    render_scores([score], tmp_path / "out", replace(config, variants=4, **EXACT))
    found = rows(tmp_path / "out")
    assert len(found) == 8
    for row in found:
        assert row["start_s"] <= 5.01 or 30.0 <= row["start_s"] <= 35.01
        audio, rate = soundfile.read(tmp_path / "out" / row["file_name"])
        loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max())
        assert np.diff(np.concatenate([[0], loud, [len(audio)]])).max() < 1.05 * rate


@pytest.mark.parametrize("target", ["guitar", "winds", "drums"])
def test_rescored_clips_say_and_play_that_family_only(tmp_path, config, target):
    render_scores([band(tmp_path / "a.mid")], tmp_path / "out", replace(config, orchestrate=target, variants=2))
    found = rows(tmp_path / "out")
    assert found
    for row in found:
        assert row["orchestration"] == target
        assert set(row["programs"]) <= set(ORCHESTRATIONS[target])
        assert set(row["families"]) == {target}
        assert row["drums"] is (target == "drums")


@pytest.mark.slow
def test_a_band_without_its_drums_keeps_the_rest_and_its_style(tmp_path, config):
    score = band(tmp_path / "a.mid")
    index = tmp_path / "index.csv"
    columns = "path,source,licence,piece_id,title,composer,genre,tempo_bpm,tempo_source,time_signature,key"
    index.write_text(f"{columns}\na.mid,x,CC0-1.0,p7,A tune,Somebody,rock,120,stated,4/4,C\n")
    made = replace(config, max_clips=1, variants=12, program_share=0.0, drumless_share=0.5, captions=6)
    render_scores([score], tmp_path / "out", made, index=index)
    found = rows(tmp_path / "out")
    without = [row for row in found if row["drums_left_out"]]
    assert 2 < len(without) < 10
    assert len(found) == 12
    for row in found:
        assert row["orchestration"] == "original"
        assert row["drums"] is not row["drums_left_out"]
        assert {0, 32, 73} <= set(row["programs"])
        assert row["genres"] == ["rock"]
        told = [text for text in row["texts"] if "no drums" in text.lower() or "without drums" in text.lower()]
        assert not told or row["drums_left_out"]
    assert sum("rock" in text and "drums" in text for row in without for text in row["texts"]) > 3


def test_drums_alone_are_not_left_out(tmp_path, config):
    score = write_score(tmp_path / "a.mid", [(at, 0.2, 38, 9) for at in range(60)])
    render_scores([score], tmp_path / "out", replace(config, max_clips=1, drumless_share=1.0))
    (row,) = rows(tmp_path / "out")
    assert row["drums"]
    assert not row["drums_left_out"]


def test_original_takes_turns_with_the_families(tmp_path, config):
    made = replace(config, orchestrate="original,guitar,organ", variants=6, max_clips=1)
    render_scores([band(tmp_path / "a.mid")], tmp_path / "out", made)
    turns = [row["orchestration"] for row in rows(tmp_path / "out")]
    assert sorted(turns) == sorted(["original"] * 3 + ["guitar", "organ", turns[turns.index("original") - 1]])
    assert all((a == "original") != (b == "original") for a, b in pairwise(turns))
    assert {"guitar", "organ"} < set(turns)


@pytest.mark.slow
def test_the_folder_does_not_depend_on_the_number_of_workers(tmp_path, config):
    for name in ("a", "b/c", "b/d"):
        band(tmp_path / "scores" / f"{name}.mid")
    made = replace(config, variants=2, max_clips=1, orchestrate="original,all", contexts=True)
    one = render_scores([tmp_path / "scores"], tmp_path / "one", made)
    two = render_scores([tmp_path / "scores"], tmp_path / "two", made, workers=2)
    assert (one.written, one.scores, two.written) == (6, 3, 6)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [row["score"] for row in rows(tmp_path / "one")][::2] == ["a.mid", "b/c.mid", "b/d.mid"]
    other = replace(made, seed=1)
    render_scores([tmp_path / "scores"], tmp_path / "three", other)
    assert rows(tmp_path / "one") != rows(tmp_path / "three")


RUN = """
import os, signal, sys, threading, time
from pathlib import Path
from musicldm.scores.rendering import RenderConfig, render_scores
folder = Path(sys.argv[1])

def kill():
    while len(list((folder / "killed" / ".render").glob("?-*.json"))) < 2:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
config = RenderConfig(backend=sys.argv[2], soundfonts=(sys.argv[3],), clip_s=5.0, max_clips=1, contexts=True)
render_scores([folder / "scores"], folder / "killed", config)
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_folder(tmp_path, config):
    for name in "abcdef":
        band(tmp_path / "scores" / f"{name}.mid")
    made = replace(config, max_clips=1, contexts=True)
    command = [sys.executable, "-c", RUN, str(tmp_path), config.backend, *config.soundfonts]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    finished = len(list((tmp_path / "killed" / ".render").glob("?-*.json")))
    assert 2 <= finished < 6
    assert not (tmp_path / "killed" / "metadata.jsonl").exists()

    resumed = render_scores([tmp_path / "scores"], tmp_path / "killed", made)
    assert (resumed.skipped, resumed.written) == (finished, 6 - finished)
    render_scores([tmp_path / "scores"], tmp_path / "straight", made)
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    assert render_scores([tmp_path / "scores"], tmp_path / "killed", made)[:2] == (0, 6)


@pytest.mark.slow
def test_a_bad_score_is_reported_and_the_rest_is_rendered(tmp_path, config):
    good = band(tmp_path / "scores" / "good.mid")
    bad = tmp_path / "scores" / "bad.mid"
    bad.write_bytes(good.read_bytes()[:300])
    write_score(tmp_path / "scores" / "short.mid", [(0, 1, 60, 0), (1, 1, 62, 0)])
    report = render_scores([tmp_path / "scores"], tmp_path / "out", config, workers=2)
    assert (report.written, report.failed, report.scores) == (2, 2, 3)
    errors = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [error["score"] for error in errors] == ["bad.mid", "short.mid"]
    assert "not a readable MIDI file" in errors[0]["error"]
    assert "no stretch of music" in errors[1]["error"]

    bad.write_bytes(good.read_bytes())  # repaired: it is tried again
    report = render_scores([tmp_path / "scores"], tmp_path / "out", config)
    assert (report.written, report.skipped, report.failed) == (2, 2, 1)


def test_metadata_follows_the_index(tmp_path, config):
    for name in ("x/a.mid", "x/b.mid"):
        band(tmp_path / "scores" / name)
    columns = "path,source,licence,piece_id,title,composer,genre,tempo_bpm,tempo_source,time_signature,key"
    lines = [f"x/{n}.mid,x,CC0-1.0,p7,Tune {n},Somebody,blues,120,stated,4/4,C" for n in "ab"]
    (tmp_path / "index.csv").write_text("\n".join([columns, *lines]))
    made = replace(config, validation_share=0.5, **EXACT)
    render_scores([tmp_path / "scores" / "x"], tmp_path / "out", made, index=tmp_path / "index.csv")
    found = rows(tmp_path / "out")
    assert [row["score"] for row in found] == ["x/a.mid"] * 2 + ["x/b.mid"] * 2  # as the index calls them
    assert len({row["split"] for row in found}) == 1  # versions of one piece stay together
    assert {row["licence"] for row in found} == {"CC0-1.0"}
    assert {row["tempo_bpm"] for row in found} == {120.0}
    assert {tuple(row["genres"]) for row in found} == {("blues",)}
    for row in found:
        assert row["text"] == row["texts"][0]
        assert len(set(row["texts"])) == 4


def test_validation_takes_its_share_of_the_pieces():
    share = np.mean([drawn_split(f"p{i:04d}", 0.2) == "validation" for i in range(4000)])
    assert share == pytest.approx(0.2, abs=0.02)
    assert drawn_split("p0001", 0.0) == "train"
    assert drawn_split("p0001", 1.0) == "validation"


def test_a_folder_with_other_settings_is_left_alone(tmp_path, config):
    score = band(tmp_path / "a.mid")
    render_scores([score], tmp_path / "out", config)
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="other settings"):
        render_scores([score], tmp_path / "out", replace(config, seed=1))
    assert contents(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metadata.jsonl").write_text("")
    with pytest.raises(FileExistsError, match=r"mine holds metadata\.jsonl, but no \.render/config\.json"):
        render_scores([score], tmp_path / "mine", config)


def test_bad_input_is_refused_before_anything_is_written(tmp_path, config):
    score, out = band(tmp_path / "a.mid"), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no score or folder .*nothing"):
        render_scores([tmp_path / "nothing.mid"], out, config)
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.mid"):
        render_scores([tmp_path / "empty"], out, config)
    with pytest.raises(FileNotFoundError, match=r"no SoundFont .*missing\.sf2"):
        render_scores([score], out, replace(config, soundfonts=(str(tmp_path / "missing.sf2"),)))
    with pytest.raises(ValueError, match=r"a\.mid is not a SoundFont"):
        render_scores([score], out, replace(config, soundfonts=(str(score),)))
    with pytest.raises(ValueError, match="workers must be at least 1"):
        render_scores([score], out, config, workers=0)
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "timidity"}, "backend must be one of fluidsynth, tinysoundfont, got 'timidity'"),
        ({"sample_rate": 4000}, "sample_rate must be from 8000"),
        ({"channels": 3}, "channels must be 1 or 2"),
        ({"clip_s": 1.0}, "clip_s must be from min_clip_s"),
        ({"clip_s": float("nan")}, "clip_s must be from min_clip_s"),
        ({"variants": 0}, "variants must be at least 1"),
        ({"tempo_range": (1.2, 0.8)}, "tempo_range must go from low to high"),
        ({"tempo_range": (0.0, 1.0)}, "tempo_range must lie within"),
        ({"tempo_range": (float("nan"), 1.0)}, "tempo_range must go from low to high"),
        ({"transpose_range": (-30, 0)}, "transpose_range must lie within"),
        ({"min_clip_s": 0.0}, "min_clip_s must be at least"),
        ({"velocity_range": (0.0, 1.0)}, "velocity_range must be positive"),
        ({"peak_db_range": (-6.0, 3.0)}, "peak_db_range must end at -0.1 dB"),
        ({"velocity_range": (1.0, float("inf"))}, "velocity_range must be positive, up to 127"),
        ({"peak_db_range": (float("-inf"), -1.0)}, "peak_db_range must end at -0.1 dB or lower, and begin at -200"),
        ({"validation_share": 1.5}, "validation_share must be from 0 to 1"),
        ({"max_silence_s": 0.0}, "max_silence_s must be positive"),
        ({"timeout_s": -1.0}, "timeout_s must be positive"),
        ({"orchestrate": "piano,kazoo"}, "orchestrate knows original, all, piano.*got 'kazoo'"),
    ],
)
def test_a_config_checks_itself(changes, message):
    with pytest.raises(ValueError, match=message):
        RenderConfig(**changes)


def test_all_means_every_family():
    assert orchestrations("all") == tuple(ORCHESTRATIONS)
    assert orchestrations("original, piano,all")[:2] == ("original", "piano")


def test_scores_of_one_name_are_refused(tmp_path):
    paths = [band(tmp_path / folder / "a.mid") for folder in "xy"]
    with pytest.raises(ValueError, match=r"would both be called a\.mid; give their common folder"):
        find_scores(paths)
    assert list(find_scores([tmp_path])) == ["x/a.mid", "y/a.mid"]
    assert find_scores([paths[0], paths[0]]) == {"a.mid": paths[0]}


def test_what_is_missing_is_named_with_the_way_out(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="apt install fluid-soundfont-gm"):
        find_soundfont((str(tmp_path),))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"apt install fluidsynth.*--backend tinysoundfont"):
        check_backend("fluidsynth")
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    with pytest.raises(ImportError, match="pip install --no-deps tinysoundfont"):
        check_backend("tinysoundfont")
    (tmp_path / "a.sf2").write_bytes(b"RIFF\0\0\0\0WAVE")
    with pytest.raises(ValueError, match=r"a\.sf2 is not a SoundFont"):
        check_soundfont(tmp_path / "a.sf2")


def test_a_synthesizer_that_hangs_is_given_up(tmp_path, config, monkeypatch):
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "fluidsynth"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    report = render_scores(
        [band(tmp_path / "a.mid")], tmp_path / "out", replace(config, backend="fluidsynth", timeout_s=0.2)
    )
    assert report.failed == 1
    assert "needed more than 0.2 s" in (tmp_path / "out" / "errors.jsonl").read_text()


def test_notes_held_over_the_end_do_not_keep_the_synthesizer_going(tmp_path, config):
    score = write_score(tmp_path / "a.mid", [(0, 120, pitch, 0) for pitch in (48, 55, 60)], programs={0: 16},
                        others=[(0, mido.Message("control_change", control=64, value=127))])  # fmt: skip
    assert render_scores([score], tmp_path / "out", replace(config, timeout_s=30.0)).written == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("font", ["of the system", "of the tests"])
def test_synthesizers_play_the_same_notes(tmp_path, config, small_soundfont, backend, font):  # noqa: F811
    needs(lacking(check_backend, backend))
    if font == "of the system":
        needs(lacking(find_soundfont))
    score = write_score(tmp_path / "a.mid", [(at, 4, 69, 0) for at in range(0, 40, 4)], programs={0: 73})
    soundfont = system_soundfont() if font == "of the system" else small_soundfont
    render_scores(
        [score], tmp_path / "out", replace(config, backend=backend, soundfonts=(soundfont,), max_clips=1, **EXACT)
    )
    (row,) = rows(tmp_path / "out")
    audio, rate = soundfile.read(tmp_path / "out" / row["file_name"])
    assert pitch_hz(audio[rate : 4 * rate], rate, 440.0) == pytest.approx(440, rel=0.012)
