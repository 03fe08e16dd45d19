"""Sentences about a clip, in many phrasings, from its attributes (see ``musicldm.scores.facts.describe``).

    attributes -> _draw_words: which facts are said, and in which words -> one of _STYLES: a sentence or two

Every statement about the sound is true of the attributes. What is said, and how, comes from ``rng`` alone.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from musicldm.scores.general_midi import PROGRAMS, Program
from musicldm.scores.lexicon import (
    DRUMS_ALONE,
    ELECTRONIC,
    ELECTRONIC_WORDS,
    FAMILY_WORDS,
    IMITATIONS,
    KINDS,
    LISTENERS,
    METRE_WORDS,
    MOODS,
    OWN_WORDS,
    PIECE,
    PLACES,
    PLAYERS,
    SYNONYMS,
    TEMPO,
    TIMES,
)

# Takes no article, is no soloist: words in -s but not a bass
MANY = re.compile(r".*((?<!bas)s|brass|choir|section|ensemble|orchestra|percussion|timpani|applause)$")
PLURAL_FAMILIES = ("strings", "brass", "winds")
SPARSE, BUSY = 1.5, 7.0  # onsets a second
LOW, HIGH = 50.0, 76.0  # mean MIDI pitch
OCCASIONS = 0.15  # share of captions that also say where, when or for whom
GENRE_NOUNS = re.compile(
    r".*(waltz|reel|jig|hornpipe|dance|carol|ballad|tango|bolero|polka|lullaby|march|tune|song|soundtrack|quartet|hymn|spiritual)$"
)


class Words(NamedTuple):
    """The words for what one caption may say; what is not said is None."""

    instruments: tuple[str, ...]  # in order of prominence
    solo: bool  # one player
    player: str | None  # "pianist"
    alone: bool  # no drums play that are not among the instruments
    mood: str | None  # "sad"
    speed: str | None  # "slow"
    number: str | None  # "70 BPM"
    key: str | None  # "A minor"
    mode: str | None  # "minor"
    metre: str | None  # "3/4 time"
    genre: str | None  # "folk", "waltz"
    texture: str | None  # "sparse"
    register: str | None  # "low"
    line: bool  # one note at a time
    no_drums: bool
    drums_only: bool


def tempo_words(bpm: float) -> tuple[str, ...]:
    """Adjectives for a tempo in beats a minute."""
    return next(words for limit, words in TEMPO if bpm < limit)


def mood_words(key: str | None, bpm: float | None) -> tuple[str | None, ...]:
    """Adjectives for the mood that a key ("A minor") and a tempo in beats a minute give a piece."""
    if not (key and bpm):
        return (None,)
    return next(words for limit, words in MOODS[key.split()[1]] if bpm < limit)


def write_captions(attributes: Mapping, rng: np.random.Generator, n: int = 1) -> list[str]:
    """``n`` captions, different from each other; fewer where the attributes give too little to say."""
    texts: dict[str, None] = {}
    for _ in range(10 * n):
        words = _draw_words(attributes, rng)
        style = _STYLES[pick(rng, range(len(_STYLES)))]
        text = style(words, rng)
        if rng.random() < OCCASIONS and ". " not in text:
            text = _add_occasion(text, rng)
        texts[text] = None
        if len(texts) == n:
            break
    return list(texts)


def pick(rng: np.random.Generator, options: Sequence):
    return options[int(rng.integers(len(options)))]


def _draw_words(attributes: Mapping, rng: np.random.Generator) -> Words:
    def perhaps(share: float, value: str | None) -> str | None:
        return value if rng.random() < share else None

    instruments, solo = instrument_words(attributes, rng)
    bpm, key, genres = attributes["tempo_bpm"], attributes["key"], attributes["genres"]
    onsets, pitch = attributes["onsets_per_s"], attributes["mean_pitch_midi"]
    metre = attributes["time_signature"]
    texture = ("sparse", "spacious") if onsets < SPARSE else ("busy", "dense") if onsets > BUSY else (None,)
    register = None if pitch is None else "low" if pitch < LOW else "high" if pitch > HIGH else None
    electronic = _electronic(attributes["instruments"])
    melodic = any(name not in ("drums", "percussion") for name in attributes["instruments"])
    absence = 0.6 if attributes.get("drums_left_out") else 0.3  # that drums are absent is worth a word
    words = Words(
        instruments=instruments,
        solo=solo,
        alone=not melodic or not {"drums", "percussion"} & {*attributes["instruments"]},
        player=_player(attributes["instruments"]) if solo or not melodic else None,
        mood=perhaps(0.3, pick(rng, mood_words(key, bpm))),
        speed=perhaps(0.65, pick(rng, tempo_words(bpm))) if bpm else None,
        number=perhaps(0.4, f"{round(bpm)} BPM") if bpm else None,
        key=perhaps(0.4, key) if key else None,
        mode=perhaps(0.15, key.split()[1]) if key else None,
        metre=perhaps(0.25, pick(rng, METRE_WORDS.get(metre, (metre, f"{metre} time")))) if metre else None,
        genre=perhaps(0.75, pick(rng, genres)) if genres else None,
        texture=perhaps(0.3, pick(rng, texture)),
        register=perhaps(0.4, register),
        line=attributes["one_line"] and rng.random() < 0.35,
        no_drums=melodic and not attributes["percussion"] and rng.random() < absence,
        drums_only=not melodic,
    )
    return words._replace(genre=pick(rng, electronic)) if electronic and rng.random() < 0.3 else words


def _electronic(names: Sequence[str]) -> tuple[str, ...]:
    """What music by these programs and perhaps drums may be called, if all of it is electronic."""
    played = [p for p in PROGRAMS if p.name in names]
    if not played or not {p.family for p in played} <= ELECTRONIC:
        return ()
    return next(words for start, words in ELECTRONIC_WORDS.items() if all(p.name.startswith(start) for p in played))


def _player(names: Sequence[str]) -> str | None:
    """Who plays alone."""
    return next((PLAYERS.get(p.word) for p in PROGRAMS if p.name in names), "drummer" if "drums" in names else None)


def instrument_words(attributes: Mapping, rng: np.random.Generator) -> tuple[tuple[str, ...], bool]:
    """Words for the instruments, all or the most prominent ones, and whether there is one player only."""
    names, chords = attributes["instruments"], attributes["chords"]
    by_name = {p.name: p for p in PROGRAMS}
    melodic = [by_name[name] for name in names if name in by_name]
    drums = [name for name in names if name in ("drums", "percussion")]
    solo = len(melodic) == 1 and not drums and (melodic[0].chords or melodic[0].name not in chords)
    families = {p.family for p in melodic}
    if len({p.word for p in melodic}) > 1 and len(families) == 1 and rng.random() < 0.3:
        general = FAMILY_WORDS.get(families.pop())
        if general:
            return (pick(rng, general), *drums), False
    words: dict[str, str] = {}  # by plain noun: programs that share one are named once
    for p in melodic:
        if p.word in words:
            continue
        word = _name(p, rng)
        if any(word in q.word for q in melodic if q.word != p.word):
            word = p.word  # "guitar" does not tell an electric from an acoustic one
        if not p.chords and p.name in chords and p.family in PLURAL_FAMILIES and len(names) <= 3:
            word += "es" if word.endswith(("bass", "x")) else "s"
        words[p.word] = word
    shown = list(dict.fromkeys(words.values()))
    if len(shown) > 3 and rng.random() < 0.6:
        shown = shown[: int(rng.integers(2, 5))]
    if drums and (not shown or rng.random() < 0.85):
        shown += [_common(name, rng) for name in drums]
    return tuple(shown), solo and not MANY.fullmatch(shown[0])


def _name(program: Program, rng: np.random.Generator) -> str:
    """What ``program`` is called this time: by its own name, or by its plain noun or a synonym."""
    if program.name in IMITATIONS:
        return pick(rng, IMITATIONS[program.name])
    if program.name in OWN_WORDS and rng.random() < 0.5:
        return pick(rng, OWN_WORDS[program.name])
    return _common(program.word, rng)


def _common(word: str, rng: np.random.Generator) -> str:
    """A plain noun, or as often one of its synonyms."""
    return pick(rng, SYNONYMS[word]) if word in SYNONYMS and rng.random() < 0.5 else word


def with_article(text: str) -> str:
    """``text`` after its indefinite article."""
    return f"{'an' if text[0].lower() in 'aeiou8' else 'a'} {text}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def listed(words: Sequence[str], rng: np.random.Generator | None = None) -> str:
    """ "piano, bass and drums"; sometimes, with ``rng``, with articles."""
    articles = rng is not None and rng.random() < 0.3
    words = [
        with_article(word) if word in ("drum kit", "drum set") or (articles and not MANY.fullmatch(word)) else word
        for word in words
    ]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _players(words: Words, rng: np.random.Generator) -> str:
    if words.drums_only and rng.random() < 0.5:
        return pick(rng, DRUMS_ALONE) if "drum" in words.instruments[0] else "percussion only"
    if words.solo and rng.random() < 0.7:
        return f"{pick(rng, ('solo', 'solo', 'unaccompanied'))} {words.instruments[0]}"
    return listed(words.instruments, rng)


def _noun_phrase(words: Words, rng: np.random.Generator) -> str:
    """ "slow folk piece", "busy jig": adjectives and a noun, without an article."""
    noun = words.genre if words.genre and GENRE_NOUNS.fullmatch(words.genre) else pick(rng, PIECE)
    feel = ", ".join(word for word in (words.mood, words.texture, words.speed) if word)
    return " ".join(word for word in (feel, words.genre if words.genre != noun else None, noun) if word)


def _details(words: Words, rng: np.random.Generator) -> list[str]:
    """What can follow a noun, each with its preposition, in any order."""
    details = []
    if words.key:
        details.append(pick(rng, (f"in {words.key}", f"in the key of {words.key}")))
    elif words.mode:
        details.append(f"in a {words.mode} key")
    if words.number:
        number = pick(rng, (words.number, words.number, words.number.replace("BPM", "beats per minute")))
        details.append(f"at {number}")
    if words.metre:
        details.append(f"in {words.metre}")
    if words.register:
        details.append(pick(rng, (f"in a {words.register} register", f"in the {words.register} range")))
    if words.no_drums:
        details.append(pick(rng, ("without drums", "with no drums")))
    return [details[i] for i in rng.permutation(len(details))]


def _finish(text: str, rng: np.random.Generator) -> str:
    return _sentence(text) + pick(rng, (".", ".", ""))


def _keywords(words: Words, rng: np.random.Generator) -> str:
    """The bare list: "piano, slow, 70 BPM, A minor"."""
    instruments = list(words.instruments)
    if words.solo and rng.random() < 0.5:
        instruments[0] = f"solo {instruments[0]}"
    mode = words.mode and f"{words.mode} key"
    register = words.register and f"{words.register} register"
    rest = [words.genre, words.mood, words.speed, words.number, words.key or mode, words.metre, words.texture, register]
    rest = [word for word in rest if word] + (["no drums"] if words.no_drums else [])
    if rng.random() < 0.5:
        rest = [rest[i] for i in rng.permutation(len(rest))]
    return ", ".join(instruments + rest if rng.random() < 0.7 else rest + instruments)


def _piece_with(words: Words, rng: np.random.Generator) -> str:
    """ "A slow folk piece for piano and cello in A minor, at 70 BPM." """
    players = _players(words, rng)
    sung = re.search("voice|choir", players)
    link = pick(rng, ("for", "with", "featuring", "for" if sung else "played on"))
    details = _details(words, rng)
    text = f"{with_article(_noun_phrase(words, rng))} {link} {players}"
    if details:
        text += " " + ", ".join(details)
    if words.line:
        text += pick(rng, (", one note at a time", ", a single melodic line"))
    return _finish(text, rng)


def _details_first(words: Words, rng: np.random.Generator) -> str:
    """ "In A minor, at 70 BPM: a slow piece for piano." """
    details = _details(words, rng)
    text = f"{with_article(_noun_phrase(words, rng))} for {_players(words, rng)}"
    return _finish(f"{', '.join(details)}: {text}" if details else text, rng)


def _they_play(words: Words, rng: np.random.Generator) -> str:
    """ "Piano and cello play a slow waltz in 3/4." """
    many = len(words.instruments) > 1 or bool(MANY.fullmatch(words.instruments[0]) and words.instruments[0][-1] == "s")
    players = f"solo {words.instruments[0]}" if words.solo and rng.random() < 0.5 else listed(words.instruments, rng)
    if words.player and rng.random() < 0.3:
        players, many = with_article(words.player), False
    what = "a single melodic line" if words.line and not words.speed else with_article(_noun_phrase(words, rng))
    details = _details(words, rng)
    return _finish(f"{players} {'play' if many else 'plays'} {' '.join([what, ', '.join(details)]).strip()}", rng)


def _terse(words: Words, rng: np.random.Generator) -> str:
    """ "slow folk piano in A minor" """
    players = (
        listed(words.instruments) if len(words.instruments) > 1 or not words.solo else f"solo {words.instruments[0]}"
    )
    parts = [
        words.mood,
        words.speed,
        words.genre and f"{words.genre} {'for' if GENRE_NOUNS.fullmatch(words.genre) else 'music with'}",
    ]
    return " ".join([part for part in parts if part] + [players] + _details(words, rng)[:1])


def _music(words: Words, rng: np.random.Generator) -> str:
    """ "Slow, sparse folk music for piano, in A minor." """
    adjectives = [word for word in (words.mood, words.speed, words.texture) if word]
    genre = words.genre if words.genre and not GENRE_NOUNS.fullmatch(words.genre) else None
    music = " ".join([", ".join(adjectives), genre or "", "music"]).strip()
    music = re.sub(" +", " ", music)
    text = f"{music} {pick(rng, ('for', 'with', 'featuring'))} {_players(words, rng)}"
    return _finish(", ".join([text, *_details(words, rng)]), rng)


def _two_sentences(words: Words, rng: np.random.Generator) -> str:
    """ "A slow piece for piano. It is in A minor, at 70 BPM." """
    first = (
        f"{with_article(_noun_phrase(words, rng))} {pick(rng, ('for', 'with', 'featuring'))} {_players(words, rng)}."
    )
    texts = [_sentence(first)]
    details = _details(words._replace(no_drums=False), rng)
    if details:
        said = details[0] if len(details) == 1 else f"{', '.join(details[:-1])} and {details[-1]}"
        texts.append(f"It is {said}.")
    if words.no_drums:
        texts.append("There are no drums.")
    return " ".join(texts)


def _players_first(words: Words, rng: np.random.Generator) -> str:
    """ "Solo piano, slow and sparse, in A minor." """
    adjectives = [word for word in (words.mood, words.speed, words.texture) if word]
    parts = [_players(words, rng)]
    if adjectives:
        parts.append(" and ".join(adjectives))
    if words.genre:
        parts.append(with_article(words.genre) if GENRE_NOUNS.fullmatch(words.genre) else f"{words.genre} style")
    return _finish(", ".join([*parts, *_details(words, rng)]), rng)


def _bare(words: Words, rng: np.random.Generator) -> str:
    """ "solo piano", "jazz with saxophone": the shortest."""
    players = _players(words, rng)
    if words.genre and rng.random() < 0.6:
        return f"{words.genre} {'for' if GENRE_NOUNS.fullmatch(words.genre) else 'music with'} {players}"
    feel = words.mood or words.speed
    return f"{feel} {listed(words.instruments)}" if feel and rng.random() < 0.5 else players


def _add_occasion(text: str, rng: np.random.Generator) -> str:
    """ "A slow piece for piano, in a dusty attic." """
    where = f"{pick(rng, ('in', 'in', 'from', 'near'))} {with_article(f'{pick(rng, KINDS)} {pick(rng, PLACES)}')}"
    said = pick(rng, (where, where, pick(rng, TIMES), f"for {pick(rng, LISTENERS)}"))
    stop = "." if text.endswith(".") else ""
    return f"{text.removesuffix('.')}{pick(rng, (' ', ', '))}{said}{stop}"


def _everyday(words: Words, rng: np.random.Generator) -> str:
    """ "just a piano", "the sound of a flute", "accordion tune": as people ask for it."""
    if len(words.instruments) > 1 or words.drums_only:
        return f"{pick(rng, ('the sound of', 'music with', 'something with'))} {listed(words.instruments, rng)}"
    name, feel = words.instruments[0], words.mood or words.speed
    if feel and rng.random() < 0.5:
        return pick(rng, (f"{feel} {name} music", f"{feel} {name}", f"something {feel} with {name}"))
    one = name if MANY.fullmatch(name) else with_article(name)
    options = [f"the sound of {one}", f"{name} music"]
    options += [f"{one} melody", f"{name} tune"] if words.line else []
    options += [f"{name} only", f"{name} and nothing else"] if words.alone else []
    options += [f"just {one}", f"{one} alone", f"someone playing the {name}"] if words.solo else []
    return pick(rng, options)


def _genre_alone(words: Words, rng: np.random.Generator) -> str:
    """ "slow jazz", "a happy waltz", "chiptune": nothing of the instruments, if there is a genre."""
    if not words.genre:
        return _everyday(words, rng)
    what = " ".join(word for word in (words.mood or words.speed, words.genre) if word)
    return pick(rng, (what, with_article(what) if GENRE_NOUNS.fullmatch(words.genre) else f"{what} music"))


_STYLES: tuple[Callable[[Words, np.random.Generator], str], ...] = (
    _keywords,
    _keywords,
    _keywords,
    _piece_with,
    _piece_with,
    _piece_with,
    _details_first,
    _they_play,
    _they_play,
    _terse,
    _music,
    _music,
    _two_sentences,
    _players_first,
    _bare,
    _everyday,
    _everyday,
    _genre_alone,
)
