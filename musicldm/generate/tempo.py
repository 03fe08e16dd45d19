"""Music at the tempo asked for, by any model: candidates, of which the nearest is taken and stretched.

    Request with bpm -> candidates, a few at a time -> beats of each -> the nearest, stretched by at most 8 % and, if it
    is a loop of bars, turned to a downbeat -> beats again -> piece

A piece is made a little longer than it will be, so that its length is exact after the stretch. A loop of bars is made
on a circle of about its length, which whole beats fill: its tempo follows from their number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import numpy as np

from musicldm.analysis.seams import loop_quantile
from musicldm.audio.loop_chunks import Loop
from musicldm.editing.stretching import stretch, stretch_loop
from musicldm.editing.tempo import (
    LIMIT,
    Tempo,
    attack_sample,
    bar_start_s,
    choose_tracker,
    in_reach,
    is_tempo,
    measure_tempo,
    speed_to,
)
from musicldm.generate.metre import Take, beats_of, is_compound
from musicldm.generate.recipe import Request
from musicldm.novelty import CopyError

AT_ONCE = 4  # candidates that are made and measured before the next are
LEAST_STRETCH = 0.002  # smaller differences of tempo are within what a tracker can tell
SPARE_S = 0.05  # more than rounding can take from the end of a piece
STATED = re.compile(r"\d\s*(bpm|beats (per|a) minute)", re.IGNORECASE)

Output = tuple[np.ndarray, dict | None]  # a waveform, and what was found when it was compared
Make = Callable[[list[Request]], list[Output | None]]  # None: refused as a copy


class TempoError(ValueError):
    """No candidate came near the tempo asked for."""


class Grid(NamedTuple):
    """Lengths that a model makes."""

    rate: int  # Hz
    quantum: int  # samples of a latent frame
    usual: int | None  # samples where no length is asked for; None if one is


class Made(NamedTuple):
    """A piece at its tempo."""

    waveform: np.ndarray  # (L,) or (A, L)
    take: Take  # how to make it again
    found: dict  # fields of its recipe
    novelty: dict | None


class Candidate(NamedTuple):
    """One that was made, and what it takes to bring it to the tempo asked for."""

    waveform: np.ndarray
    take: Take
    tempo: Tempo
    off: float  # how far from 1 the speed is that it needs; of a loop, that it needs beside the stretch of its circle
    novelty: dict | None


def in_tempo(request: Request, grid: Grid, make: Make) -> Made:
    """The piece that ``request``, which has a tempo and a seed, asks for.

    ``make`` gives the waveforms of plain requests. The candidates have the seeds from the request's on.

    Raises:
        TempoError: no candidate came near the tempo, and ``request.force`` is false.
        CopyError: all candidates were refused.
    """
    tracker = choose_tracker()
    if request.take:
        candidate = list(_batch(request, grid, make, request.take, tracker))[request.take.place]
        return _finished(request, grid, candidate._replace(take=request.take), tracker, request.take.tried)
    tried: list[Candidate] = []
    for first in range(0, request.candidates, AT_ONCE):
        size = min(AT_ONCE, request.candidates - first)
        made_samples = _made_samples(request, grid, tried, first // AT_ONCE)
        take = Take(request.seed + first, size, 0, made_samples)
        new = [one for one in _batch(request, grid, make, take, tracker) if one is not None]
        tried += new
        for candidate in sorted(new, key=lambda one: one.off):
            if not _reaches(request, candidate):
                break
            made = _finished(request, grid, candidate, tracker, first + size)
            if is_tempo(request.bpm, made.found["tempo"]["result_bpm"], is_compound(request.meter)):
                return made
    if not tried:
        raise CopyError(f"all candidates of {request.prompt!r} came too near to the training set", refused=(0,))
    nearest = min(tried, key=lambda one: one.off)
    if request.force:
        return _finished(request, grid, nearest, tracker, request.candidates)
    raise TempoError(_too_far(request, nearest))


def stated(prompt: str, bpm: float) -> str:
    """``prompt`` with the tempo in words, as captions of music have it; as it is if it names one."""
    return prompt if STATED.search(prompt) else f"{prompt.rstrip(' .,;')} at {round(bpm)} BPM"


def loop_of(recipe: dict) -> Loop | None:
    """What the file of a loop with ``recipe`` says of it; None for other music."""
    if not recipe.get("loop"):
        return None
    if recipe.get("bars") is None:
        return Loop()
    numerator, denominator = beats_of(recipe["meter"])
    return Loop(recipe["bars"] * numerator, numerator, denominator, recipe["bpm"])


def seam_of(waveform: np.ndarray, rate: int, beats_s: Sequence[float] | None = None) -> float:
    """The rank of the change where the loop ``waveform`` (L,) or (A, L) begins again, as `loop_quantile` gives it."""
    return loop_quantile(np.atleast_2d(waveform).mean(axis=0), rate, beats_s)


def _samples(request: Request, grid: Grid) -> int:
    """Of the piece."""
    return grid.usual if request.seconds is None else round(request.seconds * grid.rate)


def _made_samples(request: Request, grid: Grid, tried: list[Candidate], round_number: int) -> int:
    """Of the candidates of the next round; of a loop whole latent frames.

    The first round of a loop, and every other one, is made on its own length; the others on one for the tempo that this
    model gives such music, as far as that is in reach.
    """
    n = _samples(request, grid)
    if not request.loop:
        return math.ceil(n * (1 + LIMIT) + SPARE_S * grid.rate)
    speed = 1.0
    if speeds := [value for one in tried if in_reach(value := _speed(request, one.tempo.bpm))]:
        speed = median(speeds) if round_number % 2 else 1.0
    most = n * (1 + LIMIT) / grid.quantum
    frames = min(max(round(n * speed / grid.quantum), math.ceil(n * (1 - LIMIT) / grid.quantum)), math.floor(most))
    return max(frames, 1) * grid.quantum


def _batch(request: Request, grid: Grid, make: Make, take: Take, tracker: str) -> Iterator[Candidate | None]:
    """The candidates of ``take``'s batch, measured; None in place of one that was refused."""
    plain = replace(
        request,
        prompt=stated(request.prompt, request.bpm),
        seconds=take.made_samples / grid.rate,
        candidates=1,
        **{"bpm": None, "bars": None, "meter": None, "force": False, "take": None},
    )
    made = make([replace(plain, seed=take.seed + place) for place in range(take.size)])
    for place, output in enumerate(made):
        if output is None or (request.take and place != request.take.place):
            yield None
            continue
        tempo = measure_tempo(output[0], grid.rate, request.loop, tracker)
        if request.loop:
            speed = take.made_samples / _samples(request, grid)
            off = abs(_speed(request, tempo.bpm * speed) - 1)
        else:
            speed = _speed(request, tempo.bpm)
            off = abs(speed - 1)
            speed = min(max(speed, 1 - LIMIT), 1 + LIMIT) if math.isfinite(speed) else 1.0
            speed = 1.0 if abs(speed - 1) < LEAST_STRETCH else speed
        yield Candidate(output[0], replace(take, place=place, speed=speed), tempo, off, output[1])


def _speed(request: Request, bpm: float) -> float:
    return speed_to(request.bpm, bpm, is_compound(request.meter))


def _reaches(request: Request, candidate: Candidate) -> bool:
    if request.loop:  # its stretch is that of its circle, which is in reach
        return is_tempo(request.bpm, request.bpm / (1 + candidate.off))
    return candidate.off <= LIMIT


def _finished(request: Request, grid: Grid, candidate: Candidate, tracker: str, tried: int) -> Made:
    """The piece that becomes of ``candidate``; ``tried`` candidates were made so far."""
    n, take = _samples(request, grid), candidate.take
    if not request.loop:
        length = round(candidate.waveform.shape[-1] / take.speed)
        waveform = stretch(candidate.waveform, grid.rate, length)[..., :n]
        after = measure_tempo(waveform, grid.rate, tracker=tracker)
    else:
        waveform = stretch_loop(candidate.waveform, grid.rate, n)
        after = measure_tempo(waveform, grid.rate, True, tracker)
        start = take.start
        if start is None:
            start = attack_sample(waveform, grid.rate, bar_start_s(after, n / grid.rate, request.bars))
        waveform, take = np.roll(waveform, -start, axis=-1), replace(take, start=start)
        after = after._replace(beats_s=np.sort((after.beats_s - start / grid.rate) % (n / grid.rate)))
    found = {
        "seconds": n / grid.rate,
        "tempo": {
            "asked_bpm": request.bpm,
            "measured_bpm": round(candidate.tempo.bpm, 3),
            "stretched": round(1 / take.speed, 6),
            "result_bpm": round(after.bpm, 3),
            "confidence": round(after.confidence, 3),
            "tracker": tracker,
            "tried": tried,
        },
    }
    if request.loop:
        found["seam_quantile"] = round(seam_of(waveform, grid.rate, after.beats_s), 4)
    return Made(waveform, replace(take, tried=tried), found, candidate.novelty)


def _too_far(request: Request, nearest: Candidate) -> str:
    way_out = "ask for another tempo, for more candidates (--candidates), or take the nearest with force (--force)"
    count = f"{request.candidates} candidate{'s' if request.candidates > 1 else ''} of {request.prompt!r}"
    if not nearest.tempo.bpm:
        return f"none of {count} has a beat, so that none comes near {request.bpm:g} BPM; {way_out}"
    return (
        f"none of {count} comes near {request.bpm:g} BPM: the nearest has {nearest.tempo.bpm:.1f} BPM, more than "
        f"{LIMIT:.0%} off in any octave, or loses its beat when it is stretched; {way_out}"
    )
