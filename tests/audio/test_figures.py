"""Pictures: their axes mean what they say."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from musicldm.audio.figures import save_comparison, save_figure
from vocoder.mel import hz_to_mel

RATE = 16_000


def tone(hz, seconds=2.0, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def dark_pixels(picture):
    return (picture[..., :3].max(axis=2) < 0.2).mean()


def spectrogram(picture, is_empty):
    """The rectangle whose rows and columns are mostly as ``is_empty`` says of a colour; above it is one axis's line."""
    found = is_empty(picture[..., :3])
    rows = np.flatnonzero(found.mean(axis=1) > 0.5)
    rows = rows[np.flatnonzero(np.diff(rows) == 1)[0] :]  # a line is one row high
    columns = np.flatnonzero(found[rows].mean(axis=0) > 0.5)
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, :3]


def dark(colours):
    return colours.max(axis=-1) < 0.35


def drawn_at(path, waveform, rate):
    """Where the brightest row and column of a picture's spectrogram are: shares from below and the left."""
    save_figure(path, waveform, rate)
    brightness = spectrogram(imread(path), dark).sum(axis=2)
    row, column = (brightness.mean(axis=axis).argmax() for axis in (1, 0))
    return 1 - (row + 0.5) / len(brightness), (column + 0.5) / brightness.shape[1]


def test_picture_of_a_tone(tmp_path):
    save_figure(tmp_path / "a.png", tone(1000), RATE, title="one tone, $5 & 日本")
    picture = imread(tmp_path / "a.png")
    assert picture.shape[0] >= 400
    assert picture.shape[1] >= 1000
    save_figure(tmp_path / "b.png", np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE), RATE)
    assert dark_pixels(picture) > dark_pixels(imread(tmp_path / "b.png")) + 0.3  # noise fills what a tone leaves empty
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("hz", "rate"),
    [(250, RATE), (1000, RATE), (4000, RATE), (440, 8_000), (440, 22_050), (3000, 44_100), (440, 48_000)],
)
def test_a_tone_lies_at_its_frequency(tmp_path, hz, rate):
    import torch

    height, _ = drawn_at(tmp_path / "a.png", tone(hz, rate=rate), rate)
    position, top = hz_to_mel(torch.tensor([hz, rate / 2], dtype=torch.float64)).tolist()
    assert abs(height - position / top) < 0.015  # of the axis


def test_a_click_lies_at_its_time(tmp_path):
    """Also in a recording that has many more samples than the picture has columns."""
    for seconds in (1, 40):
        waveform = np.zeros(seconds * RATE, np.float32)
        waveform[round(0.3 * len(waveform))] = 0.9
        _, place = drawn_at(tmp_path / "a.png", waveform, RATE)
        assert abs(place - 0.3) < 0.015


def test_two_waveforms_share_one_scale(tmp_path):
    loud = tone(1000)
    save_comparison(tmp_path / "a.png", {"original": loud, "reconstruction": 1e-5 * loud}, RATE)
    picture = imread(tmp_path / "a.png")
    upper, lower = np.array_split(picture, 2)
    bright = [(half[:, 200:900, 0] > 0.95).mean() - (half[:, 200:900, 2] > 0.95).mean() for half in (upper, lower)]
    assert bright[0] > bright[1] + 0.005  # the quiet one is 100 dB down, and stays dark


@pytest.mark.parametrize("n_samples", [1, 100, 1025, 40 * RATE])
def test_silence_of_any_length_is_one_colour(tmp_path, n_samples):
    save_figure(tmp_path / "a.png", np.zeros(n_samples, np.float32), RATE)
    picture = imread(tmp_path / "a.png")
    assert picture.shape[:2] == (600, 1200)
    loudest = np.array([0.99, 0.99, 0.75])  # of the colours: nothing is above the floor
    inside = spectrogram(picture, lambda colours: np.abs(colours - loudest).max(axis=-1) < 0.05)
    assert inside.shape[0] > 200
    assert inside.shape[1] > 900
    assert np.abs(inside[1:-1, 1:-1] - loudest).max() < 0.05


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
