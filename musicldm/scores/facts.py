"""What is true of a score, and of a stretch of one as it was rendered.

    row of an index + Score -> score_facts -> Facts
    Facts + changed Score + (start_s, end_s) -> describe -> attributes, a dict ready for JSON

Only what can be trusted becomes a fact; the rest is None or absent, and captions stay silent about it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from musicldm.scores.general_midi import DRUM_CHANNEL, DRUM_LIKE, KIT_PITCHES, PROGRAMS
from musicldm.scores.reading import Score

TRUSTED_TEMPO = ("stated", "file", "score marking")
PITCH_CLASSES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
MAJOR_NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
MINOR_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B")
# Krumhansl and Kessler (1982): how well each pitch class, counted from the tonic, fits a key
MAJOR_PROFILE = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR_PROFILE = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
KEY_MARGIN = 0.12  # correlation by which a stated key may fall behind the best fit and still be said of a clip
KEY_CORRELATION = 0.6
INAUDIBLE_DB = 42.0  # below the loudest note of the clip
SHORTEST_PART_S = 0.25  # an instrument heard for less is not mentioned
SLOWEST_BEAT, FASTEST_TRIPLE, FASTEST_BEAT = 40, 250, 320  # BPM: beyond these one taps another unit
STEADY = 0.04  # relative change of tempo that still counts as one tempo
SLOWEST_TEMPO, FASTEST_TEMPO = 10, 1000  # quarter notes a minute that are believed
UNHEARD_S = 0.25  # a tempo that holds for less does not count

GENRE_WORDS = {
    "hiphop": "hip hop",
    "chacha": "cha-cha",
    "neworleans": "New Orleans",
    "middleeastern": "Middle Eastern",
    "afrocuban": "Afro-Cuban",
    "cuban": "Cuban",
    "english": "English",
    "viennese": "Viennese",
    "french": "French",
    "christmas": "Christmas",
    "latin": "Latin",
    "brazilian": "Brazilian",
    "venezuelan": "Venezuelan",
    "dominican": "Dominican",
    "secondline": "second line",
    "sambareggae": "samba reggae",
    "prog": "progressive",
    "halftime": "half-time",
    "dixieland": "Dixieland",
    "broadway": "Broadway",
    "charleston": "Charleston",
}
GENRE_PHRASES = {
    "bossa": "bossa nova",
    "electronic dance": "electronic",
    "arpeggiated waltz": "waltz",
    "solo jazz guitar": "jazz guitar",
}
# Words of an index that are no genre, or that only say how a pattern was played.
NO_GENRE = {"melody and chords", "voice and piano", "linear", "bounce", "ando", "beat", "soft", "organ style",
            "straight eight beat", "arpeggiated classical guitar accompaniment", "piano arrangement"}  # fmt: skip

LEFT_TO_TEMPO = ("fast", "mediumfast", "slow", "12/8")  # the tempo and metre of a clip are said by its own facts
# Kinds of piece that remain what they are on any instrument.
TUNE_GENRES = re.compile(
    r"folk|reel|jig|hornpipe|morris dance|English country dance|Christmas carol|classical|(.* )?waltz"
)
# Genres that name an instrument hold only where one of these families sounds.
GENRE_NEEDS = {
    "piano": "piano",
    "guitar": "guitar",
    "strings": "strings",
    "string quartet": "strings",
    "art song": "voices",
    "band": "drums",
    "techno": "drums",
    "orchestral": "strings",
}
QUARTET = {40, 41, 42}  # violin, viola, cello


class Facts(NamedTuple):
    """Of one score, whatever its rendering."""

    piece_id: str
    source: str
    licence: str
    title: str
    composer: str
    genres: tuple[str, ...]
    tempo: bool  # whether the score's tempo map can be trusted
    tempo_qpm: float | None  # quarter notes a minute that replace the map where it says otherwise
    metre: bool  # whether its time signatures can be trusted
    key: tuple[int, str] | None  # pitch class of the tonic; "major" or "minor"

    def labels(self) -> dict[str, str]:
        """Where the score is from."""
        return {name: getattr(self, name) for name in ("piece_id", "source", "licence", "title", "composer")}


def score_facts(name: str, score: Score, row: Mapping[str, str] | None = None) -> Facts:
    """Facts of the score called ``name``, from its row of the index or, without one, from itself."""
    stated = score.tempos[:, 1]
    if row is None:
        key = parse_key(score.keys[0][1]) if len(score.keys) == 1 else None
        return Facts(
            piece_id=name,
            source="",
            licence="",
            title="",
            composer="",
            genres=(),
            tempo=len(stated) > 0,
            tempo_qpm=None,
            metre=bool(score.metres),
            key=key if key and fits_key(score.notes, key) else None,
        )
    trusted = row["tempo_source"] in TRUSTED_TEMPO and row["tempo_bpm"] != ""
    listed = float(row["tempo_bpm"]) if trusted else None
    agrees = listed is not None and len(stated) and np.isclose(stated, listed, rtol=0.02).any()
    return Facts(
        piece_id=row["piece_id"] or name,
        source=row["source"],
        licence=row["licence"],
        title=row["title"],
        composer=row["composer"],
        genres=genre_words(row["genre"]),
        tempo=trusted,
        tempo_qpm=None if agrees else listed,
        metre=row["time_signature"] != "",
        key=parse_key(row["key"]) if row["key"] else None,
    )


def is_tempo(qpm: float) -> bool:
    """Whether ``qpm`` quarter notes a minute can be music."""
    return SLOWEST_TEMPO <= qpm <= FASTEST_TEMPO


def is_metre(numerator: int, denominator: int) -> bool:
    """Whether music has such time signatures."""
    return 1 <= numerator <= 64 and denominator in (1, 2, 4, 8, 16, 32, 64)


def parse_key(key: str) -> tuple[int, str]:
    """``"F#m"`` -> (6, "minor"). Raises ValueError for anything that is not a key."""
    match = re.fullmatch(r"([A-G])([#b]?)(m?)", key)
    if not match:
        raise ValueError(f"{key!r} is not a key; expected a letter from A to G, then # or b, then m for minor")
    letter, accidental, minor = match.groups()
    tonic = PITCH_CLASSES[letter] + {"#": 1, "b": -1, "": 0}[accidental]
    return tonic % 12, "minor" if minor else "major"


def key_name(key: tuple[int, str]) -> str:
    """(6, "minor") -> "F# minor", in the usual spelling."""
    tonic, mode = key
    return f"{(MAJOR_NAMES if mode == 'major' else MINOR_NAMES)[tonic]} {mode}"


def genre_words(genre: str) -> tuple[str, ...]:
    """Split an index's genre into statements.

    ``"jazz/swing"`` goes from wide to narrow and becomes "jazz", "swing"; but in a longer phrase words joined by
    a slash are alternatives ("game soundtrack, rock/metal"), of which none can be stated.
    """
    if re.fullmatch(r"[a-z]+/[a-z-]+", genre):
        pieces = re.split(r"[/-]", genre)
    else:
        pieces = [re.sub(r"\S*[a-z]/[a-z]\S*", "", piece) for piece in genre.split(",")]
    result = []
    for piece in pieces:
        words = [word for word in piece.split() if word not in LEFT_TO_TEMPO]
        text = re.sub(" with (band|melody)$", "", " ".join(GENRE_WORDS.get(word, word) for word in words))
        text = GENRE_PHRASES.get(text, text)
        if text and text not in NO_GENRE:
            result.append(text)
    return tuple(dict.fromkeys(result))


def fits_key(notes: np.ndarray, key: tuple[int, str], margin: float = KEY_MARGIN) -> bool:
    """Whether the pitches of ``notes`` speak for ``key``, or at least not for another one."""
    melodic = notes[notes["channel"] != DRUM_CHANNEL]
    weight = np.bincount(melodic["pitch"] % 12, np.minimum(melodic["end_s"] - melodic["start_s"], 2.0), 12)
    if np.count_nonzero(weight) < 4:
        return False
    fit = {
        (tonic, mode): float(np.corrcoef(weight, np.roll(profile, tonic))[0, 1])
        for mode, profile in (("major", MAJOR_PROFILE), ("minor", MINOR_PROFILE))
        for tonic in range(12)
    }
    return fit[key] >= max(KEY_CORRELATION, max(fit.values()) - margin)


def describe(facts: Facts, score: Score, start_s: float, end_s: float, *, tempo_factor: float = 1.0,
             transpose: int = 0, rescored: str | None = None) -> dict:  # fmt: skip
    """Attributes of ``score`` (already changed) between two times.

    ``tempo_factor`` and ``transpose`` say how it was changed; ``rescored`` names the family it was re-scored for.
    """
    notes = score.notes
    notes = notes[(notes["start_s"] < end_s - 0.05) & (notes["end_s"] > start_s)]
    strength = 40 * np.log10(np.maximum(notes["velocity"] / 127 * notes["level"], 1e-6))
    notes = notes[strength > strength.max() - INAUDIBLE_DB]
    drums = notes["channel"] == DRUM_CHANNEL
    melodic, percussion = notes[~drums], notes[drums]
    held = np.minimum(melodic["end_s"], end_s) - np.maximum(melodic["start_s"], start_s)
    time_of = {int(p): float(held[melodic["program"] == p].sum()) for p in np.unique(melodic["program"])}
    programs = sorted((p for p in time_of if time_of[p] >= SHORTEST_PART_S), key=lambda p: (-time_of[p], p))
    programs = programs or sorted(time_of, key=lambda p: time_of[p])[-1:]
    kit = bool(np.isin(percussion["pitch"], list(KIT_PITCHES)).any())
    metre = _metre(score, start_s, end_s) if facts.metre else None
    qpm, steady = _tempo(facts, score, start_s, end_s, tempo_factor)
    key = ((facts.key[0] + transpose) % 12, facts.key[1]) if facts.key else None
    onsets = np.unique(np.round(notes["start_s"][notes["start_s"] >= start_s] / 0.03))
    pitch = float(np.average(melodic["pitch"], weights=np.maximum(held, 0.01))) if len(melodic) else None
    duration = end_s - start_s
    several = [PROGRAMS[p].name for p in programs if _overlap(melodic[melodic["program"] == p], start_s, end_s) > 0.2]
    families = list(dict.fromkeys(PROGRAMS[p].family for p in programs))
    drum_names = ["drums"] if kit else ["percussion"] if len(percussion) else []
    families += [name for name in drum_names if name not in families]
    return {
        "instruments": [PROGRAMS[p].name for p in programs] + drum_names,
        "programs": programs,
        "chords": several,
        "families": families,
        "drums": kit,
        "percussion": bool(len(percussion)) or any(p in DRUM_LIKE for p in time_of),
        "one_line": len(programs) == 1 and not len(percussion) and _overlap(melodic, start_s, end_s) < 0.03,
        "tempo_bpm": round(beats_per_minute(qpm, metre), 1) if qpm and steady else None,
        "quarter_notes_per_min": round(qpm, 1) if qpm and steady else None,
        "tempo_steady": steady if qpm else None,
        "time_signature": metre,
        "key": key_name(key) if key and fits_key(notes, key) else None,
        "genres": _genres(facts.genres, programs, families, rescored),
        "notes_per_s": round(len(notes[notes["start_s"] >= start_s]) / duration, 2),
        "onsets_per_s": round(len(onsets) / duration, 2),
        "voices_at_once": round(float(held.sum()) / duration, 2),
        "mean_pitch_midi": round(pitch, 1) if pitch else None,
    }


def _overlap(notes: np.ndarray, start_s: float, end_s: float) -> float:
    """Share of the time in which ``notes`` sound in which two or more of them do."""
    starts, ends = np.maximum(notes["start_s"], start_s), np.minimum(notes["end_s"], end_s)
    times = np.concatenate([starts, ends])
    order = np.argsort(times, kind="stable")
    sounding = np.cumsum(np.concatenate([np.ones(len(notes)), -np.ones(len(notes))])[order])[:-1]
    span = np.diff(times[order])
    return float(span[sounding > 1].sum() / max(span[sounding > 0].sum(), 1e-9))


def _genres(genres: Sequence[str], programs: list[int], families: list[str], rescored: str | None) -> list[str]:
    """Those of ``genres`` that hold for these instruments."""
    if rescored not in (None, "drums"):  # a style is not left when its band is gone, a kind of tune is
        genres = ["waltz" if genre.endswith("waltz") else genre for genre in genres if TUNE_GENRES.fullmatch(genre)]
    holding = []
    for genre in genres:
        if genre == "string quartet" and (set(programs) != QUARTET or rescored):
            continue
        if genre == "orchestral" and len(programs) < 4:
            continue
        if all(family in families for word, family in GENRE_NEEDS.items() if word in genre):
            holding.append(genre)
    return holding


def _metre(score: Score, start_s: float, end_s: float) -> str | None:
    """The one time signature between two times; None when it changes, is not stated from the start, or absurd."""
    before = [m for m in score.metres if m[0] <= start_s + 0.05][-1:]
    within = [m for m in score.metres if start_s + 0.05 < m[0] < end_s - 0.5]
    signatures = {(numerator, denominator) for _, numerator, denominator in before + within}
    if not before or len(signatures) != 1 or not is_metre(*(signature := signatures.pop())):
        return None
    return "{}/{}".format(*signature)


def _tempo(facts: Facts, score: Score, start_s: float, end_s: float, factor: float) -> tuple[float | None, bool]:
    """Mean quarter notes a minute between two times (None when not known), and whether the tempo is steady.

    Before its first statement the tempo of a score is not known: the 120 of MIDI's default are nobody's intention.
    """
    if not facts.tempo:
        return None, False
    if facts.tempo_qpm is not None:
        return facts.tempo_qpm * factor, True
    times, values = score.tempos.T
    if not len(times) or times[0] > start_s + UNHEARD_S:
        return None, False
    first = max(int(np.searchsorted(times, start_s + 1e-6, side="right")) - 1, 0)
    last = int(np.searchsorted(times, end_s))
    span = np.diff(np.concatenate([[start_s], times[first + 1 : last], [end_s]]))
    values = values[first:last] if last > first else values[first : first + 1]
    mean = float(np.average(values, weights=span))
    heard = values[span > UNHEARD_S]
    if not all(is_tempo(value / factor) for value in [mean, *heard]):
        return None, False
    return mean, bool(np.all(np.abs(heard / mean - 1) <= STEADY)) if len(heard) else True


def beats_per_minute(qpm: float, metre: str | None) -> float:
    """Beats a minute as one would tap them: what the metre counts, or larger units where that is too fast to tap.

    Half notes in 2/2, dotted quarters in 6/8, 9/8 and 12/8, quarters otherwise and where the metre is not known.
    """
    if metre is None:
        return qpm
    numerator, denominator = map(int, metre.split("/"))
    if denominator == 8 and numerator in (6, 9, 12):
        return qpm * 2 / 3
    if denominator == 2 and qpm / 2 >= SLOWEST_BEAT:
        return qpm / 2
    if numerator == 3 and qpm > FASTEST_TRIPLE:
        return qpm / 3
    return qpm / 2 if qpm > FASTEST_BEAT else qpm
