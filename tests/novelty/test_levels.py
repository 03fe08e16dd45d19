"""Levels confirm what lies under other music, and nothing that only shares a pattern."""

import numpy as np
import pytest

from musicldm.novelty.alignment import best_match, matches, pitch_frames
from musicldm.novelty.levels import CHANCE, agreement, confirmation
from tests.helpers.melodies import RATE, melody

FRAMES = 50


def notes(seed, frames=FRAMES, loudest=255):
    """Frames (T, 60) of a melody of partials, each held for four frames."""
    rng = np.random.default_rng(seed)
    levels = np.full((frames, 60), 30.0)
    for first in range(0, frames, 4):
        for pitch in rng.choice(60, 4, replace=False):
            levels[first : first + 4, pitch] = rng.uniform(0.5, 1) * loudest
    return np.round(levels).astype(np.uint8)


def covered(copied, other, gain):
    """What is heard of two sounds: the louder, in each band; ``gain`` in steps of 60 dB / 255."""
    return np.maximum(np.clip(copied.astype(float) + gain, 0, 255), other).astype(np.uint8)


@pytest.mark.parametrize("gain", [0, -25, -51])  # 0, -6, -12 dB
def test_what_is_covered_in_part_agrees(gain):
    copied, other = notes(0), notes(1)
    assert agreement(copied, copied) > 0.99
    assert agreement(covered(copied, other, gain), copied) > 0.7
    assert confirmation(covered(copied, other, gain), copied) == pytest.approx(
        agreement(covered(copied, other, gain), copied) - CHANCE
    )


def test_a_shared_pattern_at_other_levels_does_not():
    copied = notes(0)
    spread = np.random.default_rng(2).uniform(-160, 0, size=copied.shape)
    played = np.clip(copied + spread, 30, 255).astype(np.uint8)
    assert agreement(played, copied) < CHANCE
    assert confirmation(notes(1), copied) == 0


def test_too_little_says_nothing():
    copied = notes(0)
    assert agreement(copied[:19], copied[:19]) == 0
    silent = np.zeros_like(copied)
    assert agreement(silent, silent) == 0
    assert agreement(silent, copied) <= 0  # all of it is missing


def test_music_under_other_music_scores_more_than_before():
    """And the match says how much of its score is due to levels; strangers get nothing."""
    rng = np.random.default_rng(0)
    originals = [pitch_frames(melody(seed, 10), RATE) for seed in range(8)]
    more = []
    for seed in range(8):
        other = melody(100 + seed, 10, semitones=int(rng.integers(-3, 4)))
        mixed = np.float32(other + 0.5 * melody(seed, 10))
        found = best_match(pitch_frames(mixed, RATE), originals)
        assert found.candidate == seed
        assert 0 <= found.by_levels <= 1 - CHANCE
        more.append(found.by_levels)
        strangers = matches(pitch_frames(other, RATE), originals)
        assert max(one.by_levels for one in strangers) == 0
    assert np.mean(more) > 0.2


def test_each_candidate_has_its_own_best_place():
    query = pitch_frames(melody(5, 6), RATE)
    whole = pitch_frames(melody(3, 12), RATE)
    found = matches(query, [whole, query, whole[10:]])
    assert [one.candidate for one in found] == [0, 1, 2]
    assert (found[1].start_s, found[1].semitones, found[1].tempo) == (found[1].query_start_s, 0, 1)
    best = best_match(query, [whole, query])
    assert best.candidate == 1
    assert best.score == pytest.approx(max(one.score for one in found), abs=1e-5)
    for one, candidate in zip(found, [whole, query, whole[10:]], strict=True):
        assert one.score == pytest.approx(best_match(query, [candidate]).score, abs=1e-5)
