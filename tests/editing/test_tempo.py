"""Tempo: counted in any octave, measured on a line and round a loop; where a bar begins."""

import math
import sys

import numpy as np
import pytest

from musicldm.editing.pulse import pulsed_noise
from musicldm.editing.tempo import (
    Tempo,
    attack_sample,
    bar_start_s,
    choose_tracker,
    is_tempo,
    measure_tempo,
    speed_to,
)
from tests.helpers.rhythm import drum_track, needs_madmom


@pytest.mark.parametrize(
    ("asked", "measured", "compound", "speed"),
    [
        (120, 120, False, 1),
        (120, 60, False, 1),
        (60, 240, False, 1),
        (120, 115, False, 120 / 115),
        (120, 124 / 2, False, 120 / 124),
        (150, 57, False, 150 / 114),
        (120, 40, False, 120 / 160),
        (120, 40, True, 1),
        (180, 61, True, 180 / 183),
    ],
)
def test_octaves_apart_the_nearest_speed(asked, measured, compound, speed):
    assert speed_to(asked, measured, compound) == pytest.approx(speed)
    assert is_tempo(asked, measured, compound) == (abs(speed - 1) <= 0.02)


def test_music_without_a_beat_has_no_speed():
    assert speed_to(120, 0) == math.inf
    assert not is_tempo(120, 0)
    silent = measure_tempo(np.zeros(20_000), 8_000, tracker="librosa")
    assert silent.bpm == silent.confidence == len(silent.beats_s) == 0
    assert bar_start_s(silent, 2.5, 1) == 0


def check_drums(tracker):
    waveform, beats, _ = drum_track(112, 4)
    for channels in (waveform, np.stack([waveform, 0.5 * waveform])):
        tempo = measure_tempo(channels, 22_050, tracker=tracker)
        assert is_tempo(112, tempo.bpm)
        assert tempo.tracker == tracker
        assert max(np.abs(beats - time_s).min() for time_s in tempo.beats_s) < 0.06


def test_the_tempo_of_drums():
    check_drums("librosa")


@needs_madmom
def test_the_tempo_of_drums_by_madmom():
    check_drums("madmom")


def test_a_loop_is_heard_as_it_is_played_over():
    drums, _, _ = drum_track(120, 4, start_s=0.25, rate=16_000)
    loop = drums[: 6 * 16_000]  # three bars
    tempo = measure_tempo(loop, 16_000, loop=True, tracker="librosa")
    assert is_tempo(120, tempo.bpm)
    assert tempo.beats_s[0] < 0.5
    assert tempo.beats_s[-1] > 5.4
    assert len(tempo.beats_s) == 12
    turned = measure_tempo(np.roll(loop, 7_000), 16_000, loop=True, tracker="librosa")
    offsets = (turned.beats_s - 7_000 / 16_000 - 0.25 + 0.25) % 0.5 - 0.25
    assert np.abs(offsets).max() < 0.06


def made_tempo(phase_s, period_s, n, downbeats, per_bar, rng):
    beats_s = phase_s + period_s * np.arange(n) + rng.uniform(-0.01, 0.01, n)
    return Tempo(60 / period_s, beats_s, beats_s[downbeats], per_bar, 0.5, "librosa")


def test_a_bar_begins_where_most_downbeats_are():
    rng = np.random.default_rng(0)
    assert bar_start_s(made_tempo(0.1, 0.5, 16, [2, 6, 10, 13], 4, rng), 8.0, 4) == pytest.approx(1.1, abs=0.01)
    # counted at half the tempo: two beats a bar
    assert bar_start_s(made_tempo(0.4, 1.0, 8, [1, 3, 7], 4, rng), 8.0, 4) == pytest.approx(1.4, abs=0.01)
    # beats near the end of the loop's period, whose phases lie about 0
    start = bar_start_s(made_tempo(0.0, 0.5, 16, [4, 8], 4, rng), 8.0, 4)
    assert min(start, 8.0 - start) < 0.01


def test_a_loop_begins_before_the_attack():
    rng = np.random.default_rng(0)
    loop = 1e-4 * rng.normal(size=(2, 8_000))
    loop[:, 4_000:4_400] = rng.normal(size=(2, 400)) * np.linspace(1, 0, 400)
    for late_s in (0.0, 0.004, 0.008):
        start = attack_sample(loop, 8_000, 0.5 + late_s)
        assert 4_000 - 80 <= start <= 4_000
    assert 0 <= attack_sample(loop, 8_000, 0.0) < 8_000


def test_without_madmom_librosa_tracks_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "madmom", None)
    with pytest.warns(UserWarning, match="madmom is not installed"):
        assert choose_tracker() == "librosa"


@pytest.mark.parametrize(("bpm", "played"), [(120, 120), (40, 80), (300, 150)])
def test_a_pulse_swells_on_each_beat(bpm, played):
    pulsed, steady = pulsed_noise(5 * 8_000, 8_000, bpm, beats_per_bar=4)
    beat = np.arange(len(pulsed)) / 8_000 * played / 60
    audible = np.abs(steady) > 1e-3
    level = (pulsed[audible] / steady[audible]).round(3)
    share = (beat % 1)[audible]
    first, other = (beat[audible] // 1 % 4 == 0), (beat[audible] // 1 % 4 != 0)
    assert level[(share < 0.01) & first].min() > 0.9
    assert 0.75 < level[(share < 0.01) & other].min() <= level[other].max() <= 0.85
    assert level[share > 0.95].max() < 0.5
    assert measure_tempo(pulsed, 8_000, tracker="librosa").bpm == pytest.approx(played, rel=0.03)
