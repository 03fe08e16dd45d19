"""``musicldm beats`` and ``musicldm mixup`` on drum tracks whose beats are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from augment.beats import NO_BEATS, Beats, beat_numbers
from musicldm.audio import read_audio
from musicldm.cli import main
from tests.helpers.commands import fails, succeeds
from tests.helpers.golden import recording
from tests.helpers.rhythm import drum_track, needs_madmom

RATE = 16_000


@pytest.fixture(scope="module")
def drums(tmp_path_factory):
    """``drums(bpm, beats_per_bar, pickup)``: a file of that, and where its beats are."""
    folder = tmp_path_factory.mktemp("drums")

    def write(bpm, beats_per_bar=4, pickup=0):
        waveform, beats, downbeats = drum_track(bpm, beats_per_bar, pickup, rate=RATE)
        path = folder / f"{bpm}_{beats_per_bar}_{pickup}.wav"
        soundfile.write(path, waveform, RATE)
        return path, beats, downbeats

    return write


def test_beats_are_numbered_from_the_downbeat():
    times = np.arange(9.0)
    assert beat_numbers(Beats(times, times[2::4], 4, 60.0, 1.0)).tolist() == [3, 4, 1, 2, 3, 4, 1, 2, 3]
    assert beat_numbers(Beats(times, times[:0], 0, 60.0, 1.0)).tolist() == [0] * 9
    assert beat_numbers(NO_BEATS).tolist() == []
    changing = Beats(times, times[[0, 3, 7]], 4, 60.0, 1.0)
    assert beat_numbers(changing).tolist() == [1, 2, 3, 1, 2, 3, 4, 1, 2]


@needs_madmom
def test_beats_are_written_and_printed(drums, tmp_path, capsys):
    path, beats, downbeats = drums(126, 3, 2)
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(RATE), RATE)
    first, second = succeeds(capsys, "beats", path, silence, "--out", tmp_path / "out")
    assert first["beats_per_bar"] == 3
    assert first["tempo_bpm"] == pytest.approx(126, rel=2e-3)
    times, numbers = np.loadtxt(first["beats"]).T
    np.testing.assert_allclose(times, beats, atol=0.03)
    np.testing.assert_allclose(times[numbers == 1], downbeats, atol=0.03)
    assert numbers[:4].tolist() == [2, 3, 1, 2]
    assert second["tempo_bpm"] == 0
    assert Path(second["beats"]).read_text() == ""
    assert main(["beats", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "126.1 BPM, 3 beats to the bar" in capsys.readouterr().out
    assert (tmp_path / "out" / f"{path.stem}_2.beats").exists()


@pytest.mark.slow
@needs_madmom
def test_a_mixture_its_recipe_and_its_picture(drums, tmp_path, capsys):
    a, beats, downbeats = drums(120)
    b, *_ = drums(122, 4, 3)
    out = tmp_path / "made" / "mix.flac"
    (record,) = succeeds(capsys, "mixup", a, b, "--out", out, "--seconds", "4", "--lam", "0.3")
    assert record["lam"] == 0.3
    assert record["speed"] == pytest.approx(120 / 122, abs=2e-3)
    assert np.abs(downbeats - record["a_start_s"]).min() < 0.03
    waveform, rate = read_audio(out)
    assert (len(waveform), rate) == (4 * RATE, RATE)
    assert np.abs(waveform).max() == pytest.approx(0.5, abs=1e-3)
    energy = np.convolve(waveform**2, np.ones(800), "same")  # over 50 ms: loud on the beats, silent between them
    at = beats - record["a_start_s"]
    at = at[(at > 0.1) & (at < 3.6)]
    on, between = (energy[np.round((at + shift) * RATE).astype(int)] for shift in (0.02, 0.25))
    assert len(at) >= 6
    assert on.min() > 20 * between.max()
    with open(record["figure"], "rb") as file:
        assert file.read(4) == b"\x89PNG"

    again = tmp_path / "again.wav"
    arguments = ["mixup", str(a), str(b), "--out", str(again), "--seconds", "4", "--lam", "0.3", "--no-figure"]
    assert main(arguments) == 0
    assert f"0.70 of {b.name}" in capsys.readouterr().out
    np.testing.assert_array_equal(read_audio(again)[0], waveform)
    assert not again.with_suffix(".png").exists()
    assert main(["info", str(again), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 0


@pytest.mark.slow
@needs_madmom
def test_what_does_not_fit_is_refused(drums, tmp_path, capsys):
    a, waltz, slow = drums(120)[0], drums(120, 3)[0], drums(100)[0]
    out = ("--out", tmp_path / "mix.wav", "--seconds", "3")
    assert "beats to the bar" in fails(capsys, "mixup", a, waltz, *out)
    assert "play 20.0% faster, and 4% is the most" in fails(capsys, "mixup", a, slow, *out)
    assert "mixed with itself" in fails(capsys, "mixup", a, a, *out)
    assert "from 0 to 1, got 1.5" in fails(capsys, "mixup", a, slow, *out, "--lam", "1.5")
    assert ".wav or .flac" in fails(capsys, "mixup", a, slow, "--out", tmp_path / "mix.mp3")
    assert "no_such" in fails(capsys, "mixup", a, tmp_path / "no_such.wav", *out)
    noise = tmp_path / "silence.wav"
    soundfile.write(noise, np.zeros(4 * RATE), RATE)
    assert "beats of silence.wav are not clear enough" in fails(capsys, "mixup", a, noise, *out)
    assert not list(tmp_path.glob("mix*"))
    (paper,) = succeeds(capsys, "mixup", a, slow, *out, "--mode", "paper")
    assert paper["speed"] == 1


@pytest.mark.slow
@needs_madmom
def test_real_recordings_mix(tmp_path, capsys):
    """Both at 130 BPM; the beats of the parts, as they were tracked, meet."""
    vibe, city = recording("vibe_ace.ogg"), recording("city_chill.ogg")
    (record,) = succeeds(capsys, "mixup", vibe, city, "--out", tmp_path / "mix.wav", "--no-figure")
    assert 0.2 < record["lam"] < 0.8
    starts = {"vibe_ace": record["a_start_s"], "city_chill": record["b_start_s"]}
    annotated = [np.loadtxt(path.with_suffix(".beats"), usecols=0) - starts[path.stem] for path in (vibe, city)]
    annotated[1] = annotated[1] / record["speed"]
    one, other = (times[(times > -0.02) & (times < 10.2)] for times in annotated)
    apart = np.abs(one[:, None] - other[None]).min(axis=1)
    assert len(one) > 15
    assert np.median(apart) <= 0.02


def test_without_a_tracker_the_way_out_is_named(tmp_path, capsys, monkeypatch):
    import sys

    soundfile.write(tmp_path / "a.wav", drum_track(120, 4, rate=RATE)[0], RATE)
    monkeypatch.setitem(sys.modules, "beat_this", None)
    monkeypatch.setitem(sys.modules, "beat_this.inference", None)
    line = fails(capsys, "beats", tmp_path / "a.wav", "--tracker", "beat_this", "--out", tmp_path)
    assert "pip install beat_this" in line
