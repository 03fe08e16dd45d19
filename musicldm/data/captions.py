"""Sentences about a clip, in many phrasings, from its attributes (see ``musicldm.data.facts.describe``).

Every statement is true of the attributes; which ones are made, and in which words, is drawn from ``rng``.
"""

from collections.abc import Mapping

import numpy as np

from musicldm.data.gm import PROGRAMS

WORDS = {p.name: p.word for p in PROGRAMS} | {"drums": "drums"}
FAMILY_WORDS = {
    "piano": ("piano", "keyboard"),
    "strings": ("strings",),
    "winds": ("woodwinds", "winds"),
    "brass": ("brass",),
    "guitar": ("guitar",),
    "bass": ("bass",),
    "synth": ("synthesizer", "synth"),
    "organ": ("organ",),
    "mallets": ("pitched percussion",),
    "voices": ("voices",),
}
SYNONYMS = {
    "piano": ("piano",),
    "voices": ("voices", "wordless voices"),
    "choir": ("choir", "choir"),
    "electric piano": ("electric piano", "e-piano"),
    "distorted guitar": ("distorted guitar", "distorted electric guitar"),
    "double bass": ("double bass", "upright bass"),
    "bass guitar": ("bass guitar", "electric bass"),
    "saxophone": ("saxophone", "sax"),
    "string ensemble": ("string ensemble", "string section", "strings"),
    "drums": ("drums", "a drum kit"),
}
PLURAL = ("voices", "drums", "strings", "tubular bells", "guitar harmonics", "tremolo strings", "pizzicato strings")
TEMPO = (  # up to which BPM, adjectives, nouns
    (60, ("very slow", "extremely slow")),
    (80, ("slow", "unhurried")),
    (112, ("moderate", "medium-tempo", "mid-tempo")),
    (144, ("fast", "quick", "brisk")),
    (1000, ("very fast", "rapid")),
)
TIME_WORDS = {"3/4": ("3/4", "3/4 time", "triple time"), "4/4": ("4/4", "4/4 time", "common time")}


def tempo_words(bpm: float) -> tuple[str, ...]:
    """Adjectives for a tempo in beats a minute."""
    return next(words for limit, words in TEMPO if bpm < limit)


def write_captions(attributes: Mapping, rng: np.random.Generator, n: int = 1) -> list[str]:
    """``n`` captions, different from each other where the attributes allow it."""
    texts: list[str] = []
    for _ in range(8 * n):
        text = _caption(attributes, rng)
        if text not in texts:
            texts.append(text)
        if len(texts) == n:
            break
    return texts


def _caption(attributes: Mapping, rng: np.random.Generator) -> str:
    def pick(options):
        return options[int(rng.integers(len(options)))]

    def maybe(value, share):
        return value if rng.random() < share else None

    names = list(dict.fromkeys(WORDS[name] for name in attributes["instruments"]))
    shown = names if len(names) <= 4 else names[: int(rng.integers(2, 5))]
    if "drums" in names and "drums" not in shown and rng.random() < 0.7:
        shown = [*shown, "drums"]
    instruments = [pick(SYNONYMS.get(name, (name,))) for name in shown]
    bpm = attributes["tempo_bpm"]
    speed = maybe(pick(tempo_words(bpm)), 0.7) if bpm else None
    number = maybe(f"{round(bpm)} BPM", 0.4) if bpm else None
    key = maybe(attributes["key"], 0.4) if attributes["key"] else None
    genre = maybe(pick(attributes["genres"]), 0.75) if attributes["genres"] else None
    solo = len(names) == 1 and names[0] != "drums"
    if rng.random() < 0.3:
        words = [*instruments, genre, speed, number, key]
        if solo and rng.random() < 0.5:
            words[0] = f"solo {words[0]}"
        return ", ".join(word for word in words if word)
    subject = " ".join(word for word in (speed, genre) if word)
    noun = pick(("piece", "tune", "track", "piece of music"))
    article = "An" if subject[:1].lower() in "aeiou" and subject else "A"
    head = f"{article} {subject} {noun}" if subject else f"A {noun}"
    listed = instruments[0] if len(instruments) == 1 else ", ".join(instruments[:-1]) + " and " + instruments[-1]
    text = f"{head} {pick(('with', 'for', 'featuring'))} {'solo ' if solo else ''}{listed}"
    if key:
        text += f" in {key}"
    if number:
        text += f" at {number}"
    return text + pick((".", ""))
