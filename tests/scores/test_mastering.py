"""Loudness: known levels of BS.1770-4 and EBU Tech 3341; what the limiter may and may not do."""

import math

import numpy as np
import pytest

from musicldm.scores.mastering import CEILING, MOST_LIMITING_DB, limit, loudness, master


def tone(rate: int, seconds: float, db: float, channels: int = 2, hz: float = 997.0) -> np.ndarray:
    """A sine (L, channels) whose peak is ``db`` relative to full scale."""
    wave = 10 ** (db / 20) * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_tones_are_as_loud_as_the_standards_say(rate):
    assert loudness(tone(rate, 3, 0.0, channels=1), rate) == pytest.approx(-3.01, abs=0.1)  # BS.1770
    assert loudness(tone(rate, 20, -23.0), rate) == pytest.approx(-23.0, abs=0.1)  # EBU Tech 3341, case 1


def test_what_is_far_below_the_rest_does_not_count():
    parts = [tone(48_000, 10, -36), tone(48_000, 60, -23), tone(48_000, 10, -36)]
    assert loudness(np.concatenate(parts), 48_000) == pytest.approx(-23.0, abs=0.1)  # EBU Tech 3341, case 3


def test_low_tones_are_less_loud():
    assert loudness(tone(48_000, 3, -20, hz=30), 48_000) < loudness(tone(48_000, 3, -20), 48_000) - 5


def test_silence_has_no_loudness():
    assert loudness(np.zeros((48_000, 2)), 48_000) == -math.inf
    assert loudness(tone(48_000, 0.3, 0.0), 48_000) == -math.inf


def test_mastering_meets_the_loudness_and_leaves_channels_as_they_were():
    audio = tone(44_100, 4, -40.0) * np.array([1.0, 0.5])
    made = master(audio, 44_100, -14.0)
    assert loudness(made, 44_100) == pytest.approx(-14.0, abs=1e-6)
    np.testing.assert_allclose(made[:, 1], 0.5 * made[:, 0])


def test_peaks_are_limited_and_only_so_far():
    audio = tone(44_100, 4, -30.0)
    audio[88_200] = 1.0  # a click 30 dB above the rest
    made = master(audio, 44_100, -14.0)
    assert np.abs(made).max() <= CEILING
    away = made[:40_000]  # of the click
    most_db = 20 * math.log10(CEILING) + MOST_LIMITING_DB - 30
    assert 20 * math.log10(np.abs(away).max()) == pytest.approx(most_db, abs=0.01)


def test_a_limiter_is_smooth_and_changes_only_what_is_near_a_peak():
    audio = tone(8_000, 2, -6.0)
    audio[8_000:8_010] = 3.0
    made = limit(audio, 100)
    assert np.abs(made).max() <= CEILING
    np.testing.assert_array_equal(made[: 8_000 - 200], audio[: 8_000 - 200])
    np.testing.assert_array_equal(made[8_010 + 200 :], audio[8_010 + 200 :])
    sounding = np.abs(audio[:, 0]) > 0.05
    gain = made[sounding, 0] / audio[sounding, 0]
    assert np.abs(np.diff(gain)).max() < 0.05
