"""Chord symbols as people write them, and the notes that play them.

    "| Am F | C/E |"  -> parse_chords -> (Placed chord, ...) -> voiced -> pitches of each, near those before

The qualities are pychord's; what it spells in one way only (maj7, m7b5) may be written in the other usual ways.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from musicldm.config.values import check_text, shown

SILENT = ("N.C.", "NC", "N.C", "n.c.")  # no chord
AGAIN = "%"  # the bar before once more
LETTERS = "C, D, E, F, G, A or B, with # or b"
EXAMPLES = "Am, F#m7b5, Bbmaj7, Csus4, G7, Ddim, E+, C6, Fadd9, C/E, N.C."
SYMBOL = re.compile(r"([A-G])([#b]{0,2})(.*)")
# Other usual spellings -> pychord's, tried in this order; "-" before a digit flattens it, elsewhere it is minor.
SPELLINGS = (
    (r"[♭]", "b"),
    (r"[♯]", "#"),
    (r"[()\s,]", ""),
    (r"[ø∅]7?", "m7b5"),
    (r"[°º]", "dim"),
    (r"^o(?=7|$)", "dim"),
    (r"[Δ△∆]7?", "maj7"),
    (r"^(?:minor|mi|min|-)(?=maj|M|Δ|\d|add|sus|$)", "m"),
    (r"^m(?:ma|maj|M)(?=7|9)", "mmaj"),
    (r"^(?:major|Maj|MAJ|ma)(?=\d|add|$)", "maj"),
    (r"^maj(?=$|add)", ""),
    (r"^M(?=$|add)", ""),
    (r"\+(?=\d)", "#"),
    (r"^\+$", "aug"),
    (r"^aug7$", "7#5"),
    (r"^7aug$", "7#5"),
    (r"^mmaj9$", "mmaj7"),
    (r"^dom7$", "7"),
    (r"6/9|6add9", "69"),
    (r"^7?alt$", "7#9#5"),
    (r"add2", "add9"),
    (r"^7sus$", "7sus4"),
    (r"^9sus$", "9sus4"),
)
BEYOND = {"m13": (0, 3, 7, 10, 14, 17, 21)}  # which pychord does not know, in semitones above the root
PLAIN = {"b9": "-9", "b5": "-5", "#5": "+5", "#11": "+11"}  # pychord knows some qualities by these alone
LOWEST_BASS, LOWEST, HIGHEST = 36, 52, 76  # MIDI pitches: C2 for the bass, E3 to E5 for the rest
MOST_TONES = 5


class Chord(NamedTuple):
    """A chord that is understood."""

    symbol: str  # as it was written
    tones: tuple[int, ...]  # pitch classes from 0 (C), the root first; empty: silence
    bass: int | None  # pitch class of the lowest note


class Placed(NamedTuple):
    """A chord and when it sounds, in bars from 0."""

    chord: Chord
    start: Fraction
    end: Fraction


def parse_chord(symbol: str) -> Chord:
    """What ``symbol``, such as "F#m7b5" or "C/E", means.

    Raises:
        ValueError: if it is no chord, with what is understood.
    """
    check_text("chord", symbol)
    if symbol in SILENT:
        return Chord(symbol, (), None)
    plain = symbol.replace("♭", "b").replace("♯", "#")
    match = SYMBOL.fullmatch(plain)
    if match is None:
        raise ValueError(f"{shown(symbol)} is no chord: it must begin with {LETTERS}; understood are {EXAMPLES}")
    root, accidental, quality = match.groups()
    bass = None
    if (slash := re.fullmatch(r"(.*)/([A-G][#b]{0,2})", quality)) is not None:
        quality, bass = slash[1], _pitch_class(slash[2])
    intervals = _intervals(quality)
    if intervals is None:
        raise ValueError(f"{shown(symbol)} is no chord that is known: {shown(quality)}; understood are {EXAMPLES}")
    first = _pitch_class(root + accidental)
    tones = tuple(dict.fromkeys((first + interval) % 12 for interval in intervals))
    return Chord(symbol, tones, first if bass is None else bass)


def _pitch_class(name: str) -> int:
    return (dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))[name[0]] + name.count("#") - name.count("b")) % 12


@lru_cache(maxsize=1024)
def _intervals(quality: str) -> tuple[int, ...] | None:
    """Semitones above the root of a chord of ``quality``; None where it is unknown."""
    from pychord.quality import QualityManager

    for pattern, replacement in SPELLINGS:
        quality = re.sub(pattern, replacement, quality)
    if quality in BEYOND:
        return BEYOND[quality]
    other = quality
    for usual, pychords in PLAIN.items():
        other = other.replace(usual, pychords)
    for spelling in dict.fromkeys((quality, other)):
        try:
            return tuple(QualityManager().get_quality(spelling).get_components(root="C", visible=False))
        except ValueError:  # what pychord says of a quality that it does not know
            continue
    return None


def parse_chords(text: str) -> tuple[list[Placed], int]:
    """The chords of ``text`` with their places, and the number of bars.

    Without bar lines each chord is a bar; between bar lines the chords of a bar share it equally. ``%`` is the bar
    before once more, ``N.C.`` silence.

    Raises:
        ValueError: for a text without chords, or something in it that is none.
    """
    check_text("chords", text)
    between_lines = text.split("|")
    if len(between_lines) > 1:  # lines at both ends and double lines are no bars
        bars = [bar.split() for bar in between_lines if bar.strip()]
    else:
        bars = [[symbol] for symbol in text.split()]
    placed: list[Placed] = []
    before: list[str] = []
    for number, symbols in enumerate(bars):
        if symbols == [AGAIN]:
            if not before:
                raise ValueError(f"the first bar of the chords is {AGAIN}, the bar before once more; write its chords")
            symbols = before
        for i, symbol in enumerate(symbols):
            share = Fraction(1, len(symbols))
            placed.append(Placed(parse_chord(symbol), number + i * share, number + (i + 1) * share))
        before = symbols
    if not placed:
        raise ValueError(f"there are no chords in {shown(text)}; write some, as in 'Am F C G' or '| Am F | C |'")
    return placed, len(bars)


def voiced(chord: Chord, before: Sequence[int] = ()) -> tuple[int, ...]:
    """MIDI pitches of ``chord``, ascending, the bass first; the others move as little as can be from ``before``.

    ``before`` are the pitches of the chord before, its bass included. Chords of more than `MOST_TONES` tones leave out
    the fifth, then the eleventh.
    """
    if not chord.tones:
        return ()
    bass = LOWEST_BASS + (chord.bass - LOWEST_BASS) % 12
    tones = list(chord.tones)
    for interval in (7, 5):
        if len(tones) > MOST_TONES and (tone := (tones[0] + interval) % 12) in tones:
            tones.remove(tone)
    centre = float(np.mean(before[1:])) if len(before) > 1 else (LOWEST + HIGHEST) / 2 - 2
    best: tuple[float, tuple[int, ...]] | None = None
    order = sorted(tones)
    for turn in range(len(order)):
        for octave in range(LOWEST // 12, HIGHEST // 12 + 1):
            pitches = [12 * octave + order[turn]]
            for tone in order[turn + 1 :] + order[:turn]:
                pitches.append(pitches[-1] + (tone - pitches[-1]) % 12)
            if pitches[0] < LOWEST or pitches[-1] > HIGHEST + 12:
                continue
            moved = sum(min(abs(pitch - other) for other in before[1:]) for pitch in pitches) if len(before) > 1 else 0
            cost = moved + abs(float(np.mean(pitches)) - centre)
            if best is None or cost < best[0]:
                best = cost, tuple(pitches)
    return (bass, *best[1])
