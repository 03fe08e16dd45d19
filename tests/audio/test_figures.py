"""Pictures: their axes mean what they say."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from musicldm.audio.figures import MAX_COLUMNS, _mel_db, save_comparison, save_figure
from vocoder.mel import hz_to_mel

RATE = 16_000


def tone(hz, seconds=2.0, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def dark_pixels(picture):
    return (picture[..., :3].max(axis=2) < 0.2).mean()


def test_picture_of_a_tone(tmp_path):
    save_figure(tmp_path / "a.png", tone(1000), RATE, title="one tone, $5 & 日本")
    picture = imread(tmp_path / "a.png")
    assert picture.shape[0] >= 400
    assert picture.shape[1] >= 1000
    save_figure(tmp_path / "b.png", np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE), RATE)
    assert dark_pixels(picture) > dark_pixels(imread(tmp_path / "b.png")) + 0.3  # noise fills what a tone leaves empty
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("hz", [250, 1000, 4000])
def test_a_tone_lies_at_its_frequency(hz):
    import torch

    mel_db = _mel_db(tone(hz), RATE)
    position, top = hz_to_mel(torch.tensor([hz, RATE / 2], dtype=torch.float64)).tolist()
    band = mel_db.mean(axis=0).argmax()
    assert abs((band + 0.5) / mel_db.shape[1] - position / top) < 0.015  # of the axis


def test_two_waveforms_share_one_scale(tmp_path):
    loud = tone(1000)
    save_comparison(tmp_path / "a.png", {"original": loud, "reconstruction": 1e-5 * loud}, RATE)
    picture = imread(tmp_path / "a.png")
    upper, lower = np.array_split(picture, 2)
    bright = [(half[:, 200:900, 0] > 0.95).mean() - (half[:, 200:900, 2] > 0.95).mean() for half in (upper, lower)]
    assert bright[0] > bright[1] + 0.005  # the quiet one is 100 dB down, and stays dark


@pytest.mark.parametrize("n_samples", [1, 100, 1025, 40 * RATE])
def test_any_length(tmp_path, n_samples):
    assert _mel_db(np.zeros(n_samples, np.float32), RATE).shape[0] <= 2 * MAX_COLUMNS
    save_figure(tmp_path / "a.png", np.zeros(n_samples, np.float32), RATE)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_any_rate(tmp_path, rate):
    save_figure(tmp_path / "a.png", tone(440, 0.5, rate), rate)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("waveform", [np.zeros(0), np.zeros((2, 0)), np.zeros((1, 2, 100))])
def test_bad_waveforms_are_refused(tmp_path, waveform):
    with pytest.raises(ValueError, match="not empty"):
        save_figure(tmp_path / "a.png", waveform, RATE)
    assert not list(tmp_path.iterdir())


def test_channels_are_drawn_as_their_mean(tmp_path):
    left = tone(1000)
    save_figure(tmp_path / "both.png", np.stack([left, np.zeros_like(left)]), RATE)
    save_figure(tmp_path / "mean.png", left / 2, RATE)
    assert (tmp_path / "both.png").read_bytes() == (tmp_path / "mean.png").read_bytes()


def test_importing_draws_nothing():
    check = (
        "import sys, musicldm.audio.figures, musicldm.audio;"
        " print({'matplotlib', 'torch', 'soundfile'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout == "set()\n"


def test_no_global_state(tmp_path):
    save_figure(tmp_path / "a.png", tone(440), RATE)
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        assert not pyplot.get_fignums()
