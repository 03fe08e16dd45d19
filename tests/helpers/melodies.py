"""Melodies of plain tones, and indices of them."""

import numpy as np
import pytest

RATE = 16_000
CLIP_S = 5


def tones(pitches, seconds=3.0, decay=3.0):
    """A row of notes, MIDI ``pitches``, each a decaying sum of harmonics."""
    time = np.arange(round(seconds / len(pitches) * RATE)) / RATE
    notes = [
        sum(np.sin(2 * np.pi * 440 * 2 ** ((p - 69) / 12) * k * time) / k for k in (1, 2, 3)) * np.exp(-decay * time)
        for p in pitches
    ]
    return (0.2 * np.concatenate(notes)).astype(np.float32)


def melody(seed, seconds=CLIP_S, semitones=0):
    pitches = np.random.default_rng(seed).integers(48, 80, size=2 * seconds)
    return tones(pitches + semitones, float(seconds))


def embedder_rows(index):
    return index.faiss.reconstruct_n(0, len(index))


def same_index(one, other):
    assert [row["file"] for row in one.recordings] == [row["file"] for row in other.recordings]
    assert np.array_equal(one.piece_of, other.piece_of)
    assert np.array_equal(one.frames, other.frames)
    np.testing.assert_allclose(embedder_rows(one), embedder_rows(other), atol=1e-6)
    assert np.array_equal(one.clip_of_window, other.clip_of_window)
    assert np.array_equal(one.window_start_s, other.window_start_s)
    np.testing.assert_allclose(
        *(each.windows.reconstruct_n(0, each.windows.ntotal) for each in (one, other)), atol=1e-3
    )
    rates = [dict(each.about["base_rate"]) for each in (one, other)]
    for name in [name for name, value in rates[0].items() if isinstance(value, list)]:
        assert rates[0].pop(name) == pytest.approx(rates[1].pop(name), abs=1e-4)
    return rates[0] == pytest.approx(rates[1], abs=1e-4)
