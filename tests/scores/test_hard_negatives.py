"""Captions that contradict a clip: they differ in tempo or drums, and in nothing else."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicldm.scores.captions import tempo_words
from musicldm.scores.hard_negatives import contradict, stated_tempo
from musicldm.scores.lexicon import TEMPO

LEVELS = {word: level for level, (_, words) in enumerate(TEMPO) for word in words}
SPEED = re.compile("|".join(sorted(LEVELS, key=len, reverse=True)), re.IGNORECASE)


@pytest.mark.parametrize(
    ("caption", "contrary"),
    [
        ("Piano and drums play a jig", "Piano without drums play a jig"),
        ("flute, organ, a cello and a drum kit", "flute, organ and a cello without drums"),
        ("jazz, sax, drums", "jazz, sax, no drums"),
        ("jazz, sax, no drums", "jazz, sax, drums"),
        ("A piece for flute with no drums.", "A piece for flute with drums."),
        ("A tune for organ. There are no drums.", "A tune for organ. There are drums."),
        ("solo piano in A minor", None),
        ("drums", None),
        ("organ at 0 BPM", None),
        ("organ at 1200 BPM", None),
        ("", None),
    ],
)
def test_drums(caption, contrary):
    assert contradict(caption, np.random.default_rng(0)) == contrary


@given(st.floats(40, 210), st.integers(0, 2**32 - 1), st.sampled_from(["BPM", "beats per minute"]))
def test_words_and_number_agree_on_another_tempo(bpm, seed, unit):
    rng = np.random.default_rng(seed)
    word = str(rng.choice(tempo_words(bpm)))
    article = "An" if word[0] in "aeiou" else "A"
    other = contradict(f"{article} {word} waltz for flute in 3/4, at {round(bpm)} {unit}.", rng)
    found = re.fullmatch(rf"(An?) ([\w -]+) waltz for flute in 3/4, at (\d+) {unit}\.", other)
    new = float(found[3])
    assert max(new / round(bpm), round(bpm) / new) > 1.15
    assert LEVELS[found[2]] != LEVELS[word]
    assert found[2] in tempo_words(new) or min(abs(new - limit) for limit, _ in TEMPO) <= 0.5  # but for rounding
    assert found[1] == ("An" if found[2][0] in "aeiou" else "A")


@given(st.sampled_from(sorted(LEVELS)), st.integers(0, 2**32 - 1))
def test_words_alone(word, seed):
    other = contradict(f"{word.capitalize()} music for organ", np.random.default_rng(seed))
    assert LEVELS[SPEED.match(other)[0].lower()] != LEVELS[word]
    assert other[0].isupper()
    assert SPEED.sub("", other) == " music for organ"


def test_what_can_be_contradicted_in_two_ways_is_in_both():
    made = {contradict("slow piano, no drums", np.random.default_rng(seed)) for seed in range(20)}
    assert "slow piano, drums" in made
    assert any(text.endswith(", no drums") and "slow" not in text.split()[0] for text in made)


@pytest.mark.parametrize(
    ("caption", "bpm"),
    [
        ("A slow waltz for organ at 70 BPM.", 70.0),
        ("Piano, 132 beats per minute, fast", 132.0),
        ("a slow waltz", np.sqrt(60 * 80)),
        ("A very slow waltz", np.sqrt(45 * 60)),
        ("rapid music for flute", np.sqrt(144 * 200)),
        ("slowly, in 3/4 and Op. 80", None),
        ("", None),
    ],
)
def test_stated_tempo(caption, bpm):
    assert stated_tempo(caption) == (bpm if bpm is None else pytest.approx(bpm))


@given(st.sampled_from(sorted(LEVELS)), st.integers(0, 2**32 - 1))
def test_contrary_captions_state_another_tempo(word, seed):
    caption = f"{word} music for organ"
    assert stated_tempo(contradict(caption, np.random.default_rng(seed))) != stated_tempo(caption)
    assert tempo_words(stated_tempo(caption)) == TEMPO[LEVELS[word]][1]
