"""Stretching: exact lengths, sounds where they belong, the same pitch; loops that stay closed and may be turned."""

import numpy as np
import pytest

from musicldm.analysis.seams import loop_jump
from musicldm.editing.stretching import stretch, stretch_loop

RATE = 16_000


def clicks(times_s, rate, length_s):
    waveform = np.zeros(round(length_s * rate), np.float32)
    waveform[np.round(np.array(times_s) * rate).astype(int)] = 0.9
    return waveform


def chord(n_samples, cycles=(880, 1109, 1320)):
    """A chord (L,) that is periodic, of so many cycles."""
    turn = np.arange(n_samples) / n_samples
    return 0.2 * sum(np.cos(2 * np.pi * number * turn + number) for number in cycles)


def notes(n_samples, seed=0):
    """A loop (L,) of notes that decay, over soft noise."""
    rng = np.random.default_rng(seed)
    loop, t = 1e-3 * rng.normal(size=n_samples), np.arange(RATE // 2) / RATE
    for beat in range(8):
        note = 0.3 * np.exp(-t / 0.1) * np.sin(2 * np.pi * rng.choice([220, 262, 330, 392]) * t)
        np.add.at(loop, (round((beat + 0.3) * n_samples / 8) + np.arange(len(t))) % n_samples, note)
    return loop


@pytest.mark.parametrize("rate", [8_000, 44_100])
@pytest.mark.parametrize("speed", [0.93, 1.004, 1.07])
def test_what_is_heard_comes_at_its_share_of_the_time(rate, speed):
    times_s = [0.004, 0.5, 1.3, 2.0, 2.7, 3.495]
    waveform = clicks(times_s, rate, 3.5)
    n_samples = round(len(waveform) / speed)
    made = stretch(waveform, rate, n_samples)
    assert made.shape == (n_samples,)
    assert made.dtype == np.float32
    for time_s in times_s:
        around = np.arange(len(made)) / rate - time_s / speed
        near = np.abs(around) < 0.1
        assert np.abs(made[near]).max() > 0.3  # none is lost, also at the ends
        assert abs(around[near][np.abs(made[near]).argmax()]) < 0.006


@pytest.mark.parametrize("speed", [0.92, 1.08])
def test_pitch_and_loudness_stay(speed):
    t = np.arange(3 * RATE) / RATE
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    made = stretch(tone, RATE, round(len(tone) / speed))
    spectrum = np.abs(np.fft.rfft(made * np.hanning(len(made)), 2**19))
    assert abs(spectrum.argmax() * RATE / 2**19 - 440) < 0.5
    for part in (made[:320], made[len(made) // 2 :][:320], made[-320:]):
        assert 0.85 < np.sqrt(np.square(part).mean()) / (0.5 / np.sqrt(2)) < 1.15


def test_channels_stay_together_and_every_call_gives_the_same():
    left, right = notes(2 * RATE), notes(2 * RATE, seed=1)
    both = stretch(np.stack([left, right]), RATE, 34_000)
    assert both.shape == (2, 34_000)
    assert np.array_equal(both, stretch(np.stack([left, right]), RATE, 34_000))
    for function in (stretch, stretch_loop):
        panned = function(np.stack([left, 0.5 * left]), RATE, 34_000)
        assert np.abs(panned[0] - 2 * panned[1]).max() < 1e-3  # Signalsmith counts in float32
        assert panned.std() > 0.01


@pytest.mark.parametrize("function", [stretch, stretch_loop])
def test_the_same_length_is_the_same_music_in_a_new_array(function):
    waveform = notes(RATE).astype(np.float32)
    made = function(waveform, RATE, RATE)
    assert np.array_equal(made, waveform)
    made[0] += 1
    assert made[0] != waveform[0]


@pytest.mark.parametrize("speed", [0.93, 0.99, 1.01, 1.06])
def test_a_stretched_loop_stays_closed(speed):
    for loop in (chord(4 * RATE), notes(4 * RATE)):
        n_samples = round(len(loop) / speed)
        made = stretch_loop(loop, RATE, n_samples)
        assert made.shape == (n_samples,)
        steps = np.abs(np.diff(np.append(made, made[0])))
        assert steps[-1] <= steps[:-1].max()
        jumps = [loop_jump(np.roll(made, -place), RATE) for place in range(0, n_samples, n_samples // 8)]
        assert jumps[0] <= 1.5 * max(jumps[1:])
    closed, open_ = stretch_loop(chord(4 * RATE), RATE, n_samples), stretch(chord(4 * RATE), RATE, n_samples)
    assert loop_jump(closed, RATE) < 0.5 * loop_jump(open_, RATE)


@pytest.mark.parametrize("turn", [2_000, 21_000, 50_000])
def test_a_turned_loop_gives_the_turned_stretch(turn):
    loop = notes(64_000).astype(np.float32)
    made, turned = (stretch_loop(one, RATE, 67_200) for one in (loop, np.roll(loop, turn)))
    assert np.array_equal(np.roll(made, turn * 67_200 // 64_000), turned)


@pytest.mark.parametrize("n_samples", [RATE - 40, RATE + 40])
def test_a_loop_that_hardly_changes_is_exactly_periodic(n_samples):
    made = stretch_loop(chord(RATE), RATE, n_samples)
    assert np.abs(made - chord(n_samples)).max() < 1e-5


@pytest.mark.parametrize("n_samples", [15_990, 15_000, 17_000])
@pytest.mark.parametrize("function", [stretch, stretch_loop])
def test_what_would_pass_full_scale_is_limited(function, n_samples):
    loud = np.random.default_rng(0).uniform(-1, 1, (2, RATE))
    assert 0.9 < np.abs(function(loud, RATE, n_samples)).max() <= 1


@pytest.mark.parametrize("function", [stretch, stretch_loop])
@pytest.mark.parametrize(
    ("waveform", "rate", "n_samples", "message"),
    [
        (np.zeros(0), RATE, 10, "not empty"),
        (np.zeros((1, 2, 3)), RATE, 3, "channels, samples"),
        (np.array([0.0, np.nan, 0.0]), RATE, 4, "finite"),
        (np.zeros(100), 0, 100, "above 0 Hz"),
        (np.zeros(100), RATE, 0, "cannot become 0"),
        (np.zeros(100), RATE, 201, "twice the length"),
    ],
)
def test_what_cannot_be_stretched_is_refused(function, waveform, rate, n_samples, message):
    with pytest.raises(ValueError, match=message):
        function(waveform, rate, n_samples)


@pytest.mark.parametrize("length", [1, 2, 50])
def test_the_shortest_music_can_be_stretched(length):
    for function in (stretch, stretch_loop):
        assert function(np.full(length, 0.1), RATE, 2 * length).shape == (2 * length,)
