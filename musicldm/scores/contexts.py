"""Contexts for training: from the notes of a clip, sound such as people will give to a model beside the text.

    rng -> plan_context -> ContextPlan
    ContextPlan, ClipSource, rng -> draw_context -> DrawnContext: audio, in which seconds what kind of it is given

A *sketch* plays the notes of a clip, or its melody, chords, bass, drums or beats, with a plain sound. *Along* are some
of its parts with their own sound; wanted is then the whole clip, or what is missing alone. In a *hole* a sketch says
what to play, while the clip itself is given around it. Sketches are made rough on purpose, as people's are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from musicldm.scores.beats import Grid, beat_grid, clip_score
from musicldm.scores.captions import pick
from musicldm.scores.harmony import chord_symbols, play_chords, triad
from musicldm.scores.mastering import CEILING, LOOK_AHEAD_S, limit
from musicldm.scores.part_words import missing_text
from musicldm.scores.parts import bass, draw_missing, drums_of, melody, of_voices
from musicldm.scores.reading import Score, read_score
from musicldm.scores.roughness import clicks_of, draw_timbre, rough
from musicldm.scores.sketch_sound import render_sketch
from musicldm.scores.sketches import RHYTHMS
from musicldm.scores.synthesis import Effects, named_soundfont, synthesize

NOTES, ALONG, HOLE = "notes", "along", "hole"
SHARES = {  # of the plans, by the kinds that are drawn together
    ("notes",): 0.19,
    ("melody",): 0.10,
    ("chords",): 0.11,
    ("bass",): 0.03,
    ("drums",): 0.06,
    ("click",): 0.08,
    ("melody", "chords"): 0.06,
    ("chords", "click"): 0.05,
    ("melody", "click"): 0.02,
    ("melody", "chords", "click"): 0.01,
    ("chords", "drums"): 0.03,
    ("melody", "drums"): 0.02,
    ("bass", "drums"): 0.02,
    ("chords", "bass", "drums"): 0.01,
    ("melody", "chords", "drums"): 0.01,
    ("melody", "bass"): 0.01,
    ("along",): 0.16,
    ("along", "chords"): 0.015,
    ("along", "melody"): 0.015,
    ("along", "notes"): 0.01,
}
ALONE_SHARE = 0.5  # of plans with other parts given, in which the missing part alone is wanted
HOLE_SHARE = 0.12  # of sketches that lie in a hole
PART_SHARE = 0.15  # of sketches that are given for a part of the clip only
SHORTEST_PART = 0.3  # of the clip's length, of such a part
HOLES = (0.15, 0.7)  # of the clip's length, between which that of a hole is drawn
LEAST_CUT_S = 0.03  # of a note that is left within a span, to be played
TRIADS_SHARE = 0.4  # of chords that are given without their sevenths
LEAD_S = 1.5  # of a longer file, heard by the reverb before the clip


class ContextPlan(NamedTuple):
    """What a draw will give, if the clip has it."""

    kinds: tuple[str, ...]  # of `musicldm.models.context.KINDS`
    alone: bool = False  # whether the parts that are missing from "along" are wanted without the others

    @property
    def own_target(self) -> bool:
        """Whether something else than the clip is wanted."""
        return self.alone


class ClipSource(NamedTuple):
    """A clip to draw contexts of."""

    midi: Path  # the notes of the file that the clip is from
    seconds: float
    audio: Callable[[], np.ndarray]  # of the clip at the rate and with the channels that are asked, (L,) or (A, L)
    offset_s: float = 0.0  # of the clip in its file
    render: Mapping | None = None  # of the row of a rendering; None for other recordings, which have sketches only
    soundfonts: Sequence[Path] = ()  # where fonts are looked for beside the system's folders


class DrawnContext(NamedTuple):
    """A context. Times are seconds of the clip."""

    audio: np.ndarray  # (L,), or (A, L) for several channels, float32; 0 where nothing is given
    spans: dict[str, list[tuple[float, float]]]  # where each kind is given; empty if the clip has nothing to give
    kept: list[tuple[float, float]]  # where the clip itself is given
    target: np.ndarray | None = None  # like ``audio``: what is wanted in place of the clip
    text: str | None = None  # of the target


def plan_context(rng: np.random.Generator) -> ContextPlan:
    """Draw what to give."""
    choices, shares = list(SHARES), np.array(list(SHARES.values()))
    kinds = choices[int(rng.choice(len(choices), p=shares / shares.sum()))]
    alone, in_hole = rng.random(2) < (ALONE_SHARE, HOLE_SHARE)
    if ALONG in kinds:
        return ContextPlan(kinds, alone=bool(alone) and kinds == (ALONG,))
    return ContextPlan((*kinds, HOLE) if in_hole else kinds)


def draw_context(
    plan: ContextPlan, clip: ClipSource, rng: np.random.Generator, rate: int, channels: int = 1
) -> DrawnContext:
    """Draw a context of ``clip`` as planned, at ``rate`` in Hz.

    What the clip does not have is left out of the plan; if nothing remains, all of its notes are given. A clip without
    notes is given nothing. The same ``rng`` gives the same.

    Raises:
        FileNotFoundError: without the MIDI file, or the SoundFont that its parts were rendered with.
        ValueError: for a MIDI file that cannot be read; of a synthesizer that fails.
    """
    score, grid = _clip_score(clip)
    silence = np.zeros((channels, round(clip.seconds * rate)), np.float32)
    sounds, target, text = [silence], None, None
    spans: dict[str, list[tuple[float, float]]] = {}
    kept: list[tuple[float, float]] = []
    if not len(score.notes):
        return DrawnContext(silence if channels > 1 else silence[0], {}, [])
    wanted = plan.kinds
    if ALONG in wanted:
        along = _draw_along(plan, clip, score, grid, rng, (rate, channels))
        if along is None:
            wanted = (*(kind for kind in wanted if kind != ALONG),) or (NOTES,)
        else:
            audio, target, text = along
            sounds.append(audio)
            spans[ALONG] = [(0.0, clip.seconds)]
    if HOLE in wanted:
        kept, hole = _draw_hole(clip.seconds, rng)
        sounds.append(_only(_as_channels(clip.audio(), channels, silence.shape), kept, rate))
        spans[HOLE] = [(0.0, clip.seconds)]
    kinds = [kind for kind in wanted if kind not in (ALONG, HOLE)]
    if kinds:
        stretches = hole if HOLE in wanted else _draw_span(clip.seconds, rng)
        audio, given = _draw_sketch(kinds, score, grid, stretches, clip.seconds, rng, rate)
        sounds.append(_only(np.repeat(audio[None], channels, axis=0), stretches, rate))
        spans |= dict.fromkeys(given, stretches)
    audio = _below_full_scale(np.sum(sounds, axis=0), rate)
    if channels == 1:
        audio, target = audio[0], None if target is None else target[0]
    return DrawnContext(audio, spans, kept, target, text)


@lru_cache(maxsize=4)
def _read(path: Path, modified: int) -> Score:
    """A score; the draws of one clip follow each other."""
    return read_score(path)


def _clip_score(clip: ClipSource) -> tuple[Score, Grid]:
    """What sounds in the clip, in its seconds, and its beats."""
    score = _read(clip.midi, clip.midi.stat().st_mtime_ns)
    end_s = clip.offset_s + clip.seconds
    grid = beat_grid(score, clip.offset_s, end_s)
    return clip_score(score, [(clip.offset_s, end_s)], None), grid._replace(times_s=grid.times_s - clip.offset_s)


def _draw_span(seconds: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Where a sketch is given: throughout, or in a part of the clip."""
    partly, length, place = rng.random(3)
    if partly >= PART_SHARE:
        return [(0.0, seconds)]
    length = (SHORTEST_PART + (1 - SHORTEST_PART) * length) * seconds
    start = place * (seconds - length)
    return [(start, start + length)]


def _draw_hole(seconds: float, rng: np.random.Generator) -> tuple[list, list]:
    """Where the clip is given, and the hole: at an end, or inside."""
    place, length, at = rng.random(3)
    length = (HOLES[0] + (HOLES[1] - HOLES[0]) * length) * seconds
    start = 0.0 if place < 0.25 else seconds - length if place < 0.5 else at * (seconds - length)
    end = start + length
    kept = [(a, b) for a, b in ((0.0, start), (end, seconds)) if b - a > 1e-3]
    return kept, [(start, end)]


def _draw_sketch(
    kinds: Sequence[str],
    score: Score,
    grid: Grid,
    stretches: list[tuple[float, float]],
    seconds: float,
    rng: np.random.Generator,
    rate: int,
) -> tuple[np.ndarray, list[str]]:
    """A sketch (L,) of those of ``kinds`` that there are, else of all notes, and which they are."""
    found = {kind: _part(kind, score.notes, grid, stretches, seconds, rng) for kind in kinds if kind != "click"}
    found = {kind: notes for kind, notes in found.items() if len(notes)}
    clicks = np.empty((0, 2))
    if "click" in kinds:
        clicks = clicks_of(grid, rng)
        clicks = clicks[[any(start <= time < end for start, end in stretches) for time in clicks[:, 0]]]
    if not found and not len(clicks):
        found = {NOTES: _part(NOTES, score.notes, grid, stretches, seconds, rng)}
    notes = np.concatenate([score.notes[:0], *found.values()])
    given = [kind for kind, part in (*found.items(), ("click", clicks)) if len(part)]
    return render_sketch(notes, clicks, seconds, rate, 1, draw_timbre(rng)), given


def _part(kind: str, notes: np.ndarray, grid: Grid, stretches, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """The notes of a ``kind`` of sketch within ``stretches``, rough."""
    if kind == "chords":
        symbols = chord_symbols(notes, grid)
        if rng.random() < TRIADS_SHARE:
            symbols = [placed._replace(symbol=triad(placed.symbol)) for placed in symbols]
        rhythm = pick(rng, RHYTHMS)
        part = play_chords(symbols, grid, rhythm) if symbols else notes[:0]
    else:
        chosen = {
            "melody": lambda: melody(notes, seconds),
            "bass": lambda: bass(notes),
            "drums": lambda: drums_of(notes),
        }
        part = chosen[kind]() if kind in chosen else notes
    part = rough(part, kind, rng)
    return np.concatenate([part[:0], *(_cut(part, start, end) for start, end in stretches)])


def _cut(notes: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    """What of ``notes`` sounds between two times."""
    cut = notes.copy()
    cut["start_s"], cut["end_s"] = np.maximum(notes["start_s"], start_s), np.minimum(notes["end_s"], end_s)
    return cut[cut["end_s"] - cut["start_s"] > np.minimum(LEAST_CUT_S, (notes["end_s"] - notes["start_s"]) / 2)]


def _draw_along(
    plan: ContextPlan, clip: ClipSource, score: Score, grid: Grid, rng: np.random.Generator, sound: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray | None, str | None] | None:
    """Some voices as they sound in the clip (A, L), and if the others alone are wanted, these and a text for them."""
    if clip.render is None or (drawn := draw_missing(score, clip.seconds, rng)) is None:
        return None
    given, missing = drawn
    audio = _played(clip, given, sound)
    if not plan.alone:
        return audio, None, None
    absent = score._replace(notes=score.notes[of_voices(score.notes, missing)])
    return audio, _played(clip, missing, sound), missing_text(absent, grid, clip.seconds, rng)


def _played(clip: ClipSource, chosen: list[tuple[int, int]], sound: tuple[int, int]) -> np.ndarray:
    """The ``chosen`` voices of a rendered clip as they sound in it, (A, L) float32."""
    rate, channels = sound
    again = clip.render
    assert again is not None
    score = _read(clip.midi, clip.midi.stat().st_mtime_ns)
    lead_s = min(LEAD_S, clip.offset_s)
    (audio,) = synthesize(
        score._replace(notes=score.notes[of_voices(score.notes, chosen)]),
        [(clip.offset_s - lead_s, clip.offset_s + clip.seconds)],
        named_soundfont(again["soundfont"], clip.soundfonts),
        sample_rate=rate,
        effects=Effects(**again["effects"]),
        backend=again["backend"],
    )
    audio = audio[round(lead_s * rate) :].T * again["gain"]
    audio = _as_channels(audio, channels, (channels, round(clip.seconds * rate)))
    return _below_full_scale(audio, rate)


def _as_channels(audio: np.ndarray, channels: int, shape: tuple[int, int]) -> np.ndarray:
    """``audio`` (L,) or (A, L) with ``channels``, cut or padded with silence to ``shape``."""
    audio = np.atleast_2d(audio)
    if len(audio) != channels:
        audio = np.repeat(audio.mean(axis=0, keepdims=True), channels, axis=0)
    result = np.zeros(shape, np.float32)
    result[:, : audio.shape[1]] = audio[:, : shape[1]]
    return result


def _below_full_scale(audio: np.ndarray, rate: int) -> np.ndarray:
    """``audio`` (A, L) float32, what is louder than full scale turned down by a limiter."""
    if np.abs(audio).max(initial=0.0) > CEILING:
        audio = limit(audio.T, round(LOOK_AHEAD_S * rate)).T
    return np.ascontiguousarray(audio, np.float32)


def _only(audio: np.ndarray, stretches: list[tuple[float, float]], rate: int) -> np.ndarray:
    """``audio`` (A, L) within ``stretches``, 0 elsewhere."""
    result = np.zeros_like(audio)
    for start_s, end_s in stretches:
        inside = slice(round(start_s * rate), round(end_s * rate))
        result[:, inside] = audio[:, inside]
    return result
