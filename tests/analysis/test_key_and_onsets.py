"""Key, percussion and onsets: known answers."""

import numpy as np
import pytest

from musicldm.analysis import estimate_key, onset_rate, percussive_share
from tests.helpers.melodies import RATE, tones


def test_key_of_a_scale_and_its_transposition():
    scale = np.array([60, 64, 67, 72, 65, 69, 67, 71, 74, 67, 60, 64, 67, 60])
    assert estimate_key(tones(scale), RATE).name == "C major"
    assert estimate_key(tones(scale + 3), RATE).name == "Eb major"
    minor = np.array([69, 72, 76, 81, 74, 77, 76, 80, 83, 76, 69, 72, 76, 69])
    assert estimate_key(tones(minor), RATE).name == "A minor"
    assert estimate_key(np.zeros(RATE, np.float32), RATE).name is None


def test_clicks_are_percussive_and_counted():
    rng, clicks = np.random.default_rng(0), np.zeros(4 * RATE, np.float32)
    for start in range(RATE // 8, len(clicks), RATE // 2):
        clicks[start : start + 400] = rng.normal(size=400) * 0.3
    held = tones([60, 67], seconds=4, decay=0.1)
    assert percussive_share(clicks, RATE) > 0.8 > 0.2 > percussive_share(held, RATE)
    assert onset_rate(clicks, RATE) == pytest.approx(2.0, abs=0.3)
    assert onset_rate(tones([60, 64, 67, 72] * 3, seconds=4), RATE) == pytest.approx(3.0, abs=0.5)
    assert onset_rate(np.zeros(RATE, np.float32), RATE) == percussive_share(np.zeros(RATE, np.float32), RATE) == 0
