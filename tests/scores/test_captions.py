"""Captions say nothing that is not true of the attributes; the checks here have a vocabulary of their own."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicldm.scores.captions import write_captions
from musicldm.scores.general_midi import PROGRAMS
from musicldm.scores.lexicon import FAMILY_WORDS, names_of

SPEEDS = {
    "very slow": (0, 60),
    "extremely slow": (0, 60),
    "slow": (60, 80),
    "unhurried": (60, 80),
    "leisurely": (60, 80),
    "moderate": (80, 112),
    "mid-tempo": (80, 112),
    "medium-tempo": (80, 112),
    "fast": (112, 144),
    "quick": (112, 144),
    "brisk": (112, 144),
    "lively": (112, 144),
    "up-tempo": (112, 144),
    "very fast": (144, 1000),
    "rapid": (144, 1000),
}
MOODS = {  # mode, and between which tempi
    "sad": ("minor", 0, 80),
    "melancholy": ("minor", 0, 80),
    "mournful": ("minor", 0, 80),
    "wistful": ("minor", 80, 112),
    "pensive": ("minor", 80, 112),
    "dramatic": ("minor", 112, 1000),
    "tense": ("minor", 112, 1000),
    "peaceful": ("major", 0, 80),
    "calm": ("major", 0, 80),
    "gentle": ("major", 0, 80),
    "relaxed": ("major", 80, 112),
    "easygoing": ("major", 80, 112),
    "happy": ("major", 112, 1000),
    "cheerful": ("major", 112, 1000),
}
PLAYERS = re.compile(r"\b(\w+ist|\w*drummer|fiddler|trumpeter)\b", re.IGNORECASE)
METRES = {
    "triple time": "3/4",
    "three-four time": "3/4",
    "common time": "4/4",
    "four-four time": "4/4",
    "duple time": "2/4",
    "cut time": "2/2",
    "six-eight time": "6/8",
}
GENRES = [
    "jazz",
    "folk",
    "slip jig",
    "waltz",
    "game soundtrack",
    "piano ballad",
    "New Orleans",
    "English country dance",
]


INSTRUMENT_WORDS = {word for p in PROGRAMS for word in names_of(p)}
INSTRUMENT_WORDS |= {word for words in FAMILY_WORDS.values() for word in words} | {
    "drums",
    "drum kit",
    "drum set",
    "percussion",
}


@st.composite
def attributes(draw) -> dict:
    """Attributes as ``describe`` gives them."""
    programs = draw(st.lists(st.sampled_from(PROGRAMS), unique=True, max_size=7))
    drums = draw(st.sampled_from(["", "drums", "percussion"] if programs else ["drums", "percussion"]))
    chords = [p.name for p in programs if draw(st.booleans())]
    bpm = draw(st.none() | st.floats(30, 250).map(lambda x: round(x, 1)))
    keys = [f"{tonic} {mode}" for tonic in ("C", "F#", "Bb", "A") for mode in ("major", "minor")]
    return {
        "instruments": [p.name for p in programs] + ([drums] if drums else []),
        "chords": chords,
        "percussion": bool(drums) or draw(st.booleans()),
        "one_line": len(programs) == 1 and not drums and not chords and draw(st.booleans()),
        "tempo_bpm": bpm,
        "time_signature": draw(st.none() | st.sampled_from(["3/4", "4/4", "2/4", "2/2", "6/8", "7/8", "12/8"])),
        "key": draw(st.none() | st.sampled_from(keys)),
        "genres": draw(st.lists(st.sampled_from(GENRES), unique=True, max_size=2)),
        "onsets_per_s": draw(st.floats(0.1, 15)),
        "mean_pitch_midi": draw(st.floats(20, 100)) if programs else None,
    }


def played_by(name: str) -> set[str]:
    """Who plays the program ``name``."""
    said = {"piano": "pianist", "guitar": "guitarist", "violin": "violinist", "fiddle": "fiddler", "viola": "violist"}
    said |= {"cello": "cellist", "harp": "harpist", "organ": "organist", "accordion": "accordionist"}
    said |= {"flute": "flutist", "clarinet": "clarinettist", "sax": "saxophonist", "trumpet": "trumpeter"}
    said |= {"trombone": "trombonist", "drums": "drummer"}
    return {player for noun, player in said.items() if noun in name}


def any_of(phrases) -> re.Pattern:
    """Matches any of ``phrases`` as whole words, the longest first."""
    choices = "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{choices})(?![\w-])" if choices else r"(?!)", re.IGNORECASE)


INSTRUMENTS = any_of(INSTRUMENT_WORDS)


def false_statements(text: str, facts: dict) -> list[str]:
    """What ``text`` says and ``facts`` does not bear out."""
    wrong = []

    def claim(true: bool, what: str) -> None:
        if not true:
            wrong.append(what)

    for number in re.findall(r"(\d+) (?:BPM|beats per minute)", text):
        claim(facts["tempo_bpm"] is not None and int(number) == round(facts["tempo_bpm"]), f"{number} BPM")
    for key in re.findall(r"\b([A-G][#b]? (?:major|minor))(?! key)(?![\w-])", text):
        claim(key == facts["key"], key)
    for mode in re.findall(r"\b(major|minor) key", text):
        claim(facts["key"] is not None and facts["key"].endswith(mode), f"{mode} key")
    for metre in re.findall(r"\b(\d+/\d+)\b", text):
        claim(metre == facts["time_signature"], metre)
    for words, metre in METRES.items():
        claim(words not in text.lower() or metre == facts["time_signature"], words)

    rest = any_of(facts["genres"]).sub(" ", text)
    no_drums = re.search(r"\b(no|without) drums\b", rest, re.IGNORECASE)
    claim(not no_drums or not facts["percussion"], "no drums")
    rest = re.sub(r"\b(no|without) drums\b", " ", rest, flags=re.IGNORECASE)

    by_name = {p.name: p for p in PROGRAMS}
    melodic = [by_name[name] for name in facts["instruments"] if name in by_name]
    allowed = {w for p in melodic for word in names_of(p) for w in (word, word + "s", word + "es")}
    if len(melodic) > 1 and len({p.family for p in melodic}) == 1:
        allowed |= set(FAMILY_WORDS.get(melodic[0].family, ()))
    if "drums" in facts["instruments"]:
        allowed |= {"drums", "drum kit", "drum set", *([] if melodic else ["drummer"])}
    if "percussion" in facts["instruments"]:
        allowed |= {"percussion"}
    electronic = {p.family for p in melodic} in ({"synth"}, {"synth effects"}, {"synth", "synth effects"})
    allowed |= {"synth"} if electronic else set()
    rest = any_of(allowed).sub(" ", rest)
    for word in ("electronic", "electro ", "ambient", "chiptune", "8-bit", "video game", "arcade", "space music"):
        claim(word not in rest.lower() or electronic, word)
    wrong += INSTRUMENTS.findall(rest)
    one = len(facts["instruments"]) == 1
    of_a_kind = len({p.family for p in melodic}) == 1 and len(melodic) == len(facts["instruments"])
    rest = rest if melodic else rest.replace("drum solo", " ")
    claim(not re.search(r"\b(solo|unaccompanied)\b", rest, re.IGNORECASE) or (one and bool(melodic)), "solo")
    claim(not re.search(r"\b(only|nothing else)\b", rest, re.IGNORECASE) or one or of_a_kind, "only")
    claim(not re.search(r"\b(alone|just|someone)\b", rest, re.IGNORECASE) or one, "alone")
    for player in PLAYERS.findall(rest):
        claim(one and player.lower() in played_by(facts["instruments"][0]), player)

    lowest = rest.lower()
    for words in sorted(SPEEDS, key=len, reverse=True):
        if re.search(rf"(?<![\w-]){words}(?![\w-])", lowest):
            low, high = SPEEDS[words]
            claim(facts["tempo_bpm"] is not None and low <= facts["tempo_bpm"] < high, words)
            lowest = lowest.replace(words, " ")
    for mood, (mode, low, high) in MOODS.items():
        if re.search(rf"\b{mood}\b", lowest):
            known = facts["key"] is not None and facts["tempo_bpm"] is not None
            claim(known and facts["key"].endswith(mode) and low <= facts["tempo_bpm"] < high, mood)
    claim(not re.search(r"\b(sparse|spacious)\b", lowest) or facts["onsets_per_s"] < 1.5, "sparse")
    claim(not re.search(r"\b(busy|dense)\b", lowest) or facts["onsets_per_s"] > 7, "busy")
    pitch = facts["mean_pitch_midi"]
    claim(not re.search(r"\blow (register|range)", lowest) or (pitch is not None and pitch < 50), "low")
    claim(not re.search(r"\bhigh (register|range)", lowest) or (pitch is not None and pitch > 76), "high")
    claim(not re.search("single melodic line|one note at a time", lowest) or facts["one_line"], "one line")
    return wrong


@settings(max_examples=150, deadline=None)
@given(attributes(), st.integers(0, 2**32))
def test_captions_state_only_truths(facts, seed):
    for text in write_captions(facts, np.random.default_rng(seed), 6):
        assert not false_statements(text, facts), text


PIANO_WALTZ = {
    "instruments": ["acoustic grand piano"],
    "chords": ["acoustic grand piano"],
    "percussion": False,
    "one_line": False,
    "tempo_bpm": 70.0,
    "time_signature": "3/4",
    "key": "A minor",
    "genres": ["waltz"],
    "onsets_per_s": 1.0,
    "mean_pitch_midi": 60.0,
}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("A fast waltz for piano.", "fast"),
        ("Piano and cello, at 71 BPM, in A major", "71 BPM"),
        ("A waltz with drums", "drums"),
        ("organ in 4/4", "organ"),
        ("A busy piece for piano in a high register", "busy"),
        ("Electronic music for piano", "electronic"),
        ("a sawtooth lead and a piano", "sawtooth lead"),
        ("A cheerful waltz for piano", "cheerful"),
        ("A guitarist plays a waltz", "guitarist"),
        ("8-bit music for piano", "8-bit"),
    ],
)
def test_the_check_above_finds_what_is_false(text, wrong):
    assert wrong in false_statements(text, PIANO_WALTZ)


@settings(max_examples=100, deadline=None)
@given(attributes(), st.integers(0, 2**32))
def test_captions_are_well_formed(facts, seed):
    for text in write_captions(facts, np.random.default_rng(seed), 6):
        assert text
        assert text == text.strip()
        assert not re.search(r"  | [,.:]|,,|\.\.|,\.|\bNone\b", text), text
        assert not re.search(r"\ba (?=[aeiou8])", text, re.IGNORECASE), text
        assert not re.search(r"\ban (?=[^aeiou8])", text, re.IGNORECASE), text


def test_captions_depend_on_the_generator_alone():
    first, second = (write_captions(PIANO_WALTZ, np.random.default_rng(3), 5) for _ in range(2))
    assert first == second
    assert first != write_captions(PIANO_WALTZ, np.random.default_rng(4), 5)


def test_a_program_is_called_by_its_own_name():
    sawtooth = PIANO_WALTZ | {"instruments": ["lead 2 (sawtooth)"], "chords": [], "one_line": True}
    texts = write_captions(sawtooth, np.random.default_rng(0), 100)
    assert 20 < sum(bool(re.search("saw|trance|techno|electro synth", text, re.IGNORECASE)) for text in texts) < 80
    calliope = sawtooth | {"instruments": ["lead 3 (calliope)"]}
    texts = write_captions(calliope, np.random.default_rng(0), 100)
    assert sum(bool(re.search("calliope", text, re.IGNORECASE)) for text in texts) > 85  # others say the genre alone
    assert not any(re.search("synth lead", text, re.IGNORECASE) for text in texts)


def test_there_are_many_phrasings_of_the_same_facts():
    texts = write_captions(PIANO_WALTZ, np.random.default_rng(0), 300)
    assert len(set(texts)) == len(texts) == 300
    openings = {" ".join(re.sub(r"[.,:]", "", text).lower().split()[:2]) for text in texts}
    assert len(openings) > 40


def test_the_bare_keyword_list_is_one_style():
    texts = write_captions(PIANO_WALTZ, np.random.default_rng(0), 12_000)
    assert {"piano", "waltz", "slow", "70 BPM", "A minor"} in [set(text.split(", ")) for text in texts]


def test_little_to_say_gives_fewer_captions(monkeypatch):
    monkeypatch.setattr("musicldm.scores.captions.OCCASIONS", 0)
    silent = dict.fromkeys(PIANO_WALTZ) | {"instruments": ["drums"], "percussion": True, "onsets_per_s": 4.0}
    silent |= {"chords": [], "genres": [], "one_line": False}
    texts = write_captions(silent, np.random.default_rng(0), 4000)
    assert 5 < len(texts) < 4000
    assert all(re.search("drum|beat", text, re.IGNORECASE) for text in texts)
