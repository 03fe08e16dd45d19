"""The tempo that a caption states; and captions that contradict a clip in one respect: another tempo, or the drums.

    "A slow waltz for piano at 70 BPM."  ->  "A rapid waltz for piano at 161 BPM."
    "jazz, saxophone, drums"             ->  "jazz, saxophone, no drums"

Beside other clips' captions, which differ in everything, instruments and genres are enough to tell right from wrong,
and CLAP learns little else. Of these it has to read the one word that differs: Yuksekgonul et al. (2023),
https://arxiv.org/abs/2210.01936.
"""

from __future__ import annotations

import re

import numpy as np

from musicldm.scores.captions import tempo_words
from musicldm.scores.lexicon import TEMPO

SLOWEST, FASTEST = 45.0, 200.0  # BPM
LEAST_RATIO = 1.2  # of a stated tempo and a contrary one
_LEVELS = {word: level for level, (_, words) in enumerate(TEMPO) for word in words}
_WORD = re.compile(rf"\b(an? )?({'|'.join(sorted(_LEVELS, key=len, reverse=True))})\b", re.IGNORECASE)
_NUMBER = re.compile(r"\b([1-9]\d{1,2})(?= (?:BPM|beats per minute))")
_DRUMS = (  # what is said, and its contrary
    (re.compile(r"\b(?:without|with no) drums\b"), "with drums"),
    (re.compile(r"\bno drums\b"), "drums"),
    (re.compile(r", ([\w -]+) and (?:drums|(?:a )?drum (?:kit|set))\b"), r" and \1 without drums"),
    (re.compile(r" and (?:drums|(?:a )?drum (?:kit|set))\b"), " without drums"),
    (re.compile(r", (?:drums|drum kit|drum set)\b"), ", no drums"),
)


def contradict(caption: str, rng: np.random.Generator) -> str | None:
    """``caption`` with its tempo or its drums changed to what is not so; None if it says nothing of either."""
    changes = [change for change in (_other_tempo(caption, rng), _other_drums(caption)) if change is not None]
    return changes[int(rng.integers(len(changes)))] if changes else None


def stated_tempo(caption: str) -> float | None:
    """The tempo in BPM that ``caption`` states: its number, else the middle of what its adjective means; or None.

    ``"A slow waltz at 70 BPM"`` -> 70.0, ``"a slow waltz"`` -> 69.3. Adjectives are those of `lexicon.TEMPO`.
    """
    if number := _NUMBER.search(caption):
        return float(number[1])
    if not (word := _WORD.search(caption)):
        return None
    limits = [SLOWEST, *(limit for limit, _ in TEMPO[:-1]), FASTEST]
    level = _LEVELS[word[2].lower()]
    return float(np.sqrt(limits[level] * limits[level + 1]))


def _other_drums(caption: str) -> str | None:
    return next((said.sub(contrary, caption, 1) for said, contrary in _DRUMS if said.search(caption)), None)


def _other_tempo(caption: str, rng: np.random.Generator) -> str | None:
    """With all words and numbers for the tempo changed to those of one other tempo, of another adjective."""
    word, number = _WORD.search(caption), _NUMBER.search(caption)
    if not (word or number):
        return None
    stated = float(number[1]) if number else None
    level = _LEVELS[word[2].lower()] if word else _LEVELS[tempo_words(stated)[0]]
    while True:
        bpm = float(np.exp(rng.uniform(np.log(SLOWEST), np.log(FASTEST))))
        is_other = stated is None or max(bpm / stated, stated / bpm) >= LEAST_RATIO
        if is_other and _LEVELS[tempo_words(bpm)[0]] != level:
            break

    def replace(found: re.Match) -> str:
        words = tempo_words(bpm)
        new = words[int(rng.integers(len(words)))]
        if found[1]:
            new = f"{'an' if new[0] in 'aeiou' else 'a'} {new}"
        return new[0].upper() + new[1:] if found[0][0].isupper() else new

    return _NUMBER.sub(f"{bpm:.0f}", _WORD.sub(replace, caption))
