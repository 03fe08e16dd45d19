"""The retrieval benchmark: which words are new to each other, and ranks."""

import numpy as np
import pytest

from recipes.mini.retrieval import new_pairs, recall, words_of


def test_words_are_new_to_each_other_if_known_but_from_no_caption_together():
    captions = [words_of(text) for text in ("A slow waltz, for harp", "fast drums in C#")]
    words = {word for some in captions for word in some}
    pairs = {(a, b) for some in captions for a in some for b in some if a < b}
    assert new_pairs("slow harp", words, pairs) == []
    assert new_pairs("slow drums, unheard-of", words, pairs) == [("drums", "slow")]
    assert words_of("In C# minor, 100 BPM") == ("100", "bpm", "c#", "in", "minor")


def test_recall_counts_recordings_nearer_than_the_right_one():
    audio = np.eye(20)
    text = np.array([audio[0], audio[1] + 2 * audio[2], audio[3] + audio[4:15].sum(axis=0) * 2])
    found = recall(text, audio, np.array([0, 1, 3]))
    assert found["at_1"] == pytest.approx(1 / 3)
    assert found["at_10"] == pytest.approx(2 / 3)
    assert found["chance_at_10"] == 0.5
