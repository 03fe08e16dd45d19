"""Music at the tempo asked for, by any model: candidates, of which one that comes near is taken and stretched.

    Request with bpm -> candidates, a few at a time -> beats of each -> the one nearest the tempo, stretched by at most
    8 % and, if it is a loop of bars, turned to a downbeat -> beats again -> piece

The prompt is given with the tempo in words. Where that does not bring any candidate near, the next ones have a pulse in
their first noise (`musicldm.editing.pulse`), stronger from round to round.

A piece is made a little longer than it will be, so that its length is exact after the stretch; a loop is made on a
circle of whole latent frames. A model that takes clicks as a context is given one on each beat of all candidates. Music
that follows notes or a recording has their time: it is measured, but neither stretched, nor turned, nor refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from musicldm.analysis.seams import FEWEST, loop_quantile
from musicldm.audio.loop_chunks import Loop
from musicldm.config.values import shown
from musicldm.editing.pulse import pulsed_noise
from musicldm.editing.stretching import stretch, stretch_loop
from musicldm.editing.tempo import (
    LIMIT,
    WITHIN,
    Tempo,
    attack_sample,
    bar_start_s,
    choose_tracker,
    is_tempo,
    measure_tempo,
    speed_to,
)
from musicldm.generate.contexts import fitted, with_click
from musicldm.generate.metre import Take, beats_of, is_compound
from musicldm.generate.recipe import Request
from musicldm.novelty import CopyError
from musicldm.pipelines.base import MusicLDMBase
from musicldm.pipelines.checks import plan_lengths
from musicldm.sampling import LeaningGenerator
from musicldm.scores.sketches import Sketch

AT_ONCE = 4  # candidates that are made and measured before the next are
PULSES = (0.0, 0.07, 0.1, 0.14)  # of the rounds; at 0.3 of the first noise nothing but beats was left
LOSS = 0.2  # of score: then a candidate fits the prompt much less; without a pulse they lie about 0.1 apart
CLEARNESS = 0.5  # what a tracker's confidence counts beside the score
LEAST_STRETCH = 0.002  # smaller differences of tempo are within what a tracker can tell
SPARE_S = 0.05  # more than rounding can take from the end of a piece
STATED = re.compile(r"\d\s*(bpm|beats (per|a) minute)", re.IGNORECASE)

Noise = Callable[[int], Generator]  # the generator of a seed
Output = tuple[np.ndarray, dict | None]  # a waveform, and what was found when it was compared
Make = Callable[[list[Request], Noise], list[Output | None]]  # of plain requests; None: refused as a copy


class TempoError(ValueError):
    """No candidate came near the tempo asked for."""


class Studio(NamedTuple):
    """What candidates are made with."""

    pipeline: MusicLDMBase
    make: Make
    noise: Noise
    tracker: str


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
    score: float | None  # cosine similarity to the prompt in CLAP's space
    novelty: dict | None


def in_tempo(request: Request, pipeline: MusicLDMBase, make: Make, noise: Noise) -> Made:
    """The piece that ``request``, which has a tempo and a seed, asks for.

    The candidates have the seeds from the request's on. In each round those within 2 % of the tempo are tried first,
    the best first, by score and clearness of the beat; then the others, the nearest first. One that fits the prompt
    much less than those without a pulse is only taken if no other comes near.

    Raises:
        TempoError: no candidate came near the tempo, and ``request.force`` is false.
        CopyError: all candidates were refused.
    """
    studio = Studio(pipeline, make, noise, choose_tracker())
    if request.take:
        candidate = list(_round(request, studio, request.take))[request.take.place]
        if candidate is None:
            raise CopyError(f"{shown(request.prompt)} came too near to the training set", refused=(0,))
        return _finished(request, studio, candidate, request.take)
    tried: list[Candidate] = []
    spare: list[Made] = []
    for number, first in enumerate(range(0, request.candidates, AT_ONCE)):
        size = min(AT_ONCE, request.candidates - first)
        pulse = PULSES[min(number, len(PULSES) - 1)]
        take = Take(request.seed + first, size, 0, _made_samples(request, pipeline), tried=first + size, pulse=pulse)
        new = [one for one in _round(request, studio, take) if one is not None]
        tried += new
        for candidate in sorted(new, key=_rank):
            if candidate.off <= (WITHIN if request.loop else LIMIT):
                made = _finished(request, studio, candidate, candidate.take)
                if not is_tempo(request.bpm, made.found["tempo"]["result_bpm"], is_compound(request.meter)):
                    continue
                if (candidate.score or 0.0) >= _least_score(tried):
                    return made
                spare.append(made)
    if spare:
        return max(spare, key=lambda one: one.found["score"])
    if not tried:
        raise CopyError(f"all candidates of {shown(request.prompt)} came too near to the training set", refused=(0,))
    nearest = min(tried, key=lambda one: one.off)
    if not request.force and not request.keeps_time:
        raise TempoError(_too_far(request, nearest))
    return _finished(request, studio, nearest, replace(nearest.take, tried=request.candidates))


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
    return round(loop_quantile(np.atleast_2d(waveform).mean(axis=0), rate, beats_s), 4)


def _rank(candidate: Candidate) -> tuple[bool, float]:
    is_near = candidate.off <= WITHIN
    good = (candidate.score or 0.0) + CLEARNESS * candidate.tempo.confidence
    return not is_near, -good if is_near else candidate.off


def _least_score(tried: list[Candidate]) -> float:
    """Of a candidate that is taken at once."""
    plain = [one.score for one in tried if not one.take.pulse and one.score is not None]
    return max(plain) - LOSS if plain else -1.0


def _quantum(pipeline: MusicLDMBase) -> int:
    """Samples of a latent frame."""
    return pipeline.vae_scale_factor * math.prod(pipeline.vocoder.config.upsample_rates)


def _samples(request: Request, pipeline: MusicLDMBase) -> int:
    """Of the piece."""
    if request.seconds is None:
        return plan_lengths(pipeline.unet, pipeline.vae, pipeline.vocoder, 1)[0]
    return round(request.seconds * pipeline.sampling_rate)


def _made_samples(request: Request, pipeline: MusicLDMBase) -> int:
    """Of its candidates."""
    n, quantum = _samples(request, pipeline), _quantum(pipeline)
    if request.loop:
        return max(1, round(n / quantum)) * quantum
    if request.keeps_time:
        return n
    return math.ceil(n * (1 + LIMIT) + SPARE_S * pipeline.sampling_rate)


def _round(request: Request, studio: Studio, take: Take) -> Iterator[Candidate | None]:
    """The candidates that are made together with ``take``, measured; None in place of one that was refused.

    If ``request`` has a take, all others are None, too.
    """
    pipeline, rate = studio.pipeline, studio.pipeline.sampling_rate
    none: dict[str, Any] = {"bpm": None, "bars": None, "meter": None, "force": False, "take": None}
    context = sketch_for(request, pipeline, take.made_samples)
    plain = replace(
        request,
        prompt=stated(request.prompt, request.bpm),
        seconds=take.made_samples / rate,
        candidates=1,
        context=context,
        context_guidance=request.context_guidance if context is not None or request.along else 1.0,
        **none,
    )
    noise = studio.noise
    if take.pulse:
        lean = take.pulse * _pulse(request, pipeline, take.made_samples)
        noise = lambda seed: LeaningGenerator(studio.noise(seed), lean)  # noqa: E731
    outputs = studio.make([replace(plain, seed=take.seed + place) for place in range(take.size)], noise)
    for place, output in enumerate(outputs):
        if output is None or (request.take and place != take.place):
            yield None
            continue
        waveform, novelty = output
        tempo = measure_tempo(waveform, rate, request.loop, studio.tracker)
        speed = _speed(request, tempo.bpm)
        if request.loop:  # whose circle is stretched, whatever its tempo
            circle = take.made_samples / _samples(request, pipeline)
            off, speed = abs(_speed(request, tempo.bpm * circle) - 1), circle
        else:
            off = abs(speed - 1)
            is_left = off < LEAST_STRETCH or math.isinf(off) or request.keeps_time
            speed = 1.0 if is_left else min(max(speed, 1 - LIMIT), 1 + LIMIT)
        score = _score(request, pipeline, waveform)
        yield Candidate(waveform, replace(take, place=place, speed=speed), tempo, off, score, novelty)


@torch.no_grad()
def _score(request: Request, pipeline: MusicLDMBase, waveform: np.ndarray) -> float | None:
    if pipeline.feature_extractor is None:
        return None
    embedding = pipeline.encode_prompt(request.prompt, guided=False)[0]  # (1, D)
    return round(float(pipeline.similarity(torch.from_numpy(waveform)[None], embedding)), 4)


@torch.no_grad()
def _pulse(request: Request, pipeline: MusicLDMBase, made_samples: int) -> Tensor:
    """The pulse (C, T, F) of the tempo asked for in the latents of ``made_samples``, of unit variance."""
    rate, quantum = pipeline.sampling_rate, _quantum(pipeline)
    frames = -(-made_samples // quantum)
    bpm = request.bpm
    if request.loop:  # whole bars on the circle
        bpm *= _samples(request, pipeline) / made_samples
    pulsed, steady = pulsed_noise(frames * quantum, rate, bpm, beats_of(request.meter)[0])
    turns = 3 if request.loop else 1  # a loop has neighbours
    both = pipeline.encode_audio(np.stack([np.tile(one, turns) for one in (pulsed, steady)]), rate).float().cpu()
    lean = (both[0] - both[1])[:, frames * (turns // 2) :][:, :frames]
    lean = lean - lean.mean(dim=1, keepdim=True)
    return lean / lean.std().clamp(min=1e-12)


def sketch_for(request: Request, pipeline: MusicLDMBase, made_samples: int | None = None) -> Sketch | None:
    """What music at a tempo follows: the request's own sketch, and a click where the model takes one.

    In the time of the piece, or of candidates of ``made_samples``, whose circle is a little longer or shorter in loops.
    """
    rate, n = pipeline.sampling_rate, _samples(request, pipeline)
    seconds = (n if made_samples is None or request.loop else made_samples) / rate
    sketch = with_click(request.sketch, request, pipeline, seconds)
    if sketch is None:
        return None
    sketch = fitted(sketch, seconds)
    return sketch if made_samples is None or not request.loop else sketch.stretched(made_samples / n)


def _speed(request: Request, bpm: float) -> float:
    return speed_to(request.bpm, bpm, is_compound(request.meter))


def _finished(request: Request, studio: Studio, candidate: Candidate, take: Take) -> Made:
    """The piece that becomes of ``candidate`` by what ``take`` says."""
    rate, n = studio.pipeline.sampling_rate, _samples(request, studio.pipeline)
    if not request.loop:
        length = round(candidate.waveform.shape[-1] / take.speed)
        waveform = stretch(candidate.waveform, rate, length)[..., :n]
        after = measure_tempo(waveform, rate, tracker=studio.tracker)
    else:
        waveform = stretch_loop(candidate.waveform, rate, n)
        after = measure_tempo(waveform, rate, True, studio.tracker)
        start = 0 if request.keeps_time else take.start
        if start is None:
            start = attack_sample(waveform, rate, bar_start_s(after, n / rate, request.bars))
        waveform, take = np.roll(waveform, -start, axis=-1), replace(take, start=start)
        after = after._replace(beats_s=np.sort((after.beats_s - start / rate) % (n / rate)))
    found = {
        "seconds": n / rate,
        "score": candidate.score,
        "tempo": {
            "asked_bpm": request.bpm,
            "measured_bpm": round(candidate.tempo.bpm, 3),
            "stretched": round(1 / take.speed, 6),
            "result_bpm": round(after.bpm, 3),
            "confidence": round(after.confidence, 3),
            "tracker": studio.tracker,
        },
    }
    if request.loop:
        beats_s = after.beats_s
        if len(beats_s) < FEWEST:
            beats_s = np.arange(0, n / rate - 1e-6, 60 / request.bpm)
        found["seam_quantile"] = seam_of(waveform, rate, beats_s.tolist())
    return Made(waveform, take, found, candidate.novelty)


def _too_far(request: Request, nearest: Candidate) -> str:
    way_out = "ask for another tempo, for more candidates (--candidates), or take the nearest with force (--force)"
    count = f"{request.candidates} candidate{'s' if request.candidates > 1 else ''} of {shown(request.prompt)}"
    if not nearest.tempo.bpm:
        return f"none of {count} has a beat, so that none comes near {request.bpm:g} BPM; {way_out}"
    return (
        f"none of {count} comes near {request.bpm:g} BPM: the nearest has {nearest.tempo.bpm:.1f} BPM, which in no "
        f"octave is within {LIMIT:.0%} of it, or loses its beat when it is stretched; {way_out}"
    )
