"""Seams: how a place ranks among a recording's own changes."""

import numpy as np
import pytest

from musicldm.analysis import changes, loop_jump, loop_quantile, seam_quantile, seam_quantiles

RATE = 16_000


def beating(seconds=10.0, bpm=120):
    """Noise bursts on the beats over a soft tone, and the times of the beats; the bursts are of different loudness."""
    rng = np.random.default_rng(0)
    t = np.arange(round(RATE * seconds)) / RATE
    sound = 0.05 * np.sin(2 * np.pi * 440 * t)
    beats = np.arange(0.25, seconds, 60 / bpm)
    for beat in beats:
        at = round(beat * RATE)
        burst = rng.normal(0, rng.uniform(0.05, 0.3), 1600) * np.exp(-np.arange(1600) / 400)
        sound[at : at + 1600] += burst[: len(sound) - at]
    return sound, beats


def test_a_click_ranks_high_and_a_quiet_place_low():
    sound, beats = beating()
    assert seam_quantile(sound, RATE, 4.99, beats) == 0.0
    clicked = sound.copy()
    clicked[round(4.99 * RATE) :] *= -1
    clicked[round(4.99 * RATE) : round(4.99 * RATE) + 40] += 0.9
    assert seam_quantile(clicked, RATE, 4.99, beats) >= 0.9
    assert 0.1 < np.median([seam_quantile(sound, RATE, beat, beats) for beat in beats]) < 0.9


def test_ranks_of_beats_are_spread_evenly():
    sound, beats = beating(40.0)
    ranks = [seam_quantile(sound, RATE, beat, beats) for beat in beats]
    assert abs(np.mean(ranks) - 0.5) < 0.05
    assert np.allclose(seam_quantiles(sound, RATE, beats[3:4], beats), ranks[3:4])


def test_without_beats_all_places_are_compared():
    sound, beats = beating()
    few = seam_quantile(sound, RATE, 4.99, beats[:3])
    assert few == seam_quantile(sound, RATE, 4.99) > 0.0
    assert seam_quantile(sound, RATE, beats[5]) > 0.7


def test_silence_does_not_change():
    assert not changes(np.zeros(RATE), RATE).any()
    assert seam_quantile(np.zeros(RATE), RATE, 0.5, [0.1, 0.3]) == 0.5
    assert loop_quantile(np.zeros(100), RATE) == 0.5
    faint = np.random.default_rng(0).normal(0, 1e-6, RATE)  # below what is heard
    sound, _ = beating(1.0)
    assert seam_quantile(np.concatenate([0.0 * faint, faint, sound, sound, sound]), RATE, 1.0) < 0.5


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100])
def test_any_rate_finds_the_place(rate):
    sound = 0.1 * np.sin(2 * np.pi * 440 * np.arange(rate * 2) / rate)
    sound[rate:] = 0.1 * np.sin(2 * np.pi * 1660 * np.arange(rate) / rate)
    assert abs(np.argmax(changes(sound, rate)) / 100 - 1.0) <= 0.02


def test_a_loop_that_closes_jumps_less_than_one_that_does_not():
    t = np.arange(2 * RATE) / RATE
    closed = 0.2 * np.sin(2 * np.pi * 440 * t) * (1.2 + np.sin(2 * np.pi * t))
    assert loop_jump(closed, RATE) < 0.1 < loop_jump(closed[:-8500], RATE)
    assert loop_quantile(closed[:-8500], RATE) > 0.99
    sound, beats = beating(8.0)
    assert loop_quantile(sound, RATE, beats) < 0.2


@pytest.mark.parametrize(
    ("waveform", "seams", "message"),
    [
        (np.zeros(100), [1.0], r"within the 0\.006 s"),
        (np.zeros(100), [-0.1], "seams must lie within"),
        (np.zeros((2, 100)), [0.0], r"must be \(samples,\)"),
        (np.full(100, np.nan), [0.0], "NaN"),
    ],
)
def test_bad_input_is_refused(waveform, seams, message):
    with pytest.raises(ValueError, match=message):
        seam_quantiles(waveform, RATE, seams)
