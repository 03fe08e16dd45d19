"""Inpainting and extension: the cases, and how each method makes them.

    piece -> region at beats -> ours | splice | SDEdit -> piece with new sound in the region, and where the seams are

``ours`` is `MusicLDMInpaintPipeline` as the commands call it. The plain methods use what any user of a text-to-music
model can do: ``splice`` puts new music for the prompt into the region, at the level of what is kept, with fades of
10 ms; ``sdedit`` makes a variation of the window around the region and puts its part of it there. In an extension the
variation is of what is kept, played backwards.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from benchmarks.editing.pieces import Piece
from musicldm import MusicLDMAudioToAudioPipeline, MusicLDMInpaintPipeline, MusicLDMPipeline
from musicldm.editing import Region, snap_to_beats
from musicldm.sampling.schedulers import GUIDANCE, GUIDANCE_INTERVAL, SAMPLER, STEPS, make_scheduler

METHODS = ("splice", "sdedit", "ours")
HOLE_S = (3.0, 5.0)  # shortest and longest
MARGIN_S = 3.0  # of the piece to either side of a hole
BEFORE_S, AFTER_S = 3.0, 5.0  # of an extension
CONTEXT_S = 3.0  # of SDEdit's window to either side
NOISE_LEVEL = 0.6  # of SDEdit
FADE_S = 0.01


@dataclass(frozen=True)
class Case:
    """An edit of a piece; an extension keeps ``region``, a hole is ``region``."""

    piece: Piece
    kind: str  # inpaint or extend
    region: Region  # seconds of the piece
    seed: int


@dataclass(frozen=True)
class Pipelines:
    """The same parts in all; the sampler is that of the commands."""

    text: MusicLDMPipeline
    vary: MusicLDMAudioToAudioPipeline
    inpaint: MusicLDMInpaintPipeline

    @classmethod
    def load(cls, model: str) -> Pipelines:
        text = MusicLDMPipeline.from_pretrained(model)
        text.scheduler = make_scheduler(SAMPLER, text.scheduler)
        text.optimize()
        made = text, MusicLDMAudioToAudioPipeline.from_pipe(text), MusicLDMInpaintPipeline.from_pipe(text)
        for each in made:
            each.set_progress_bar_config(disable=True)
        return cls(*made)


def options(seed: int) -> dict:
    """Of a call, as the commands give them."""
    return {
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "guidance_interval": GUIDANCE_INTERVAL,
        "seed": seed,
    }


def seed_of(*names: str) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(names).encode()).digest()[:4], "big")


def case_of(piece: Piece, kind: str) -> Case:
    """The edit of ``piece``; its place is drawn by the piece's name."""
    seed = seed_of(kind, piece.name)
    rng = np.random.default_rng(seed)
    if kind == "inpaint":
        length = min(rng.uniform(*HOLE_S), piece.seconds - 2 * MARGIN_S)
        start = rng.uniform(MARGIN_S, piece.seconds - MARGIN_S - length)
        stop = start + length
    else:
        start = BEFORE_S + rng.uniform(0, 1)
        stop = piece.seconds - AFTER_S - rng.uniform(0, 1)
    start, stop = (nearest_beat(piece, at) for at in (start, stop))
    (region,) = snap_to_beats([Region(start, stop)], piece.beats_s, piece.seconds)
    return Case(piece, kind, region, seed)


def nearest_beat(piece: Piece, at_s: float) -> float:
    """As a user picks a place: at the beat that is the nearest, or where there is none near, as it is."""
    if not len(piece.beats_s):
        return at_s
    nearest = float(piece.beats_s[np.abs(piece.beats_s - at_s).argmin()])
    return nearest if abs(nearest - at_s) < 1.0 else at_s


def make(case: Case, method: str, pipelines: Pipelines, waveform: np.ndarray) -> tuple[np.ndarray, dict]:
    """The edited ``waveform (L,)`` of the case's piece, and ``seams_s`` and ``new_s``: where it is new."""
    rate, (start_s, stop_s) = case.piece.rate, case.region
    start, stop = round(start_s * rate), round(stop_s * rate)
    if case.kind == "inpaint":
        kept, holes = waveform, [(start, stop)]
    else:
        kept, n = waveform[start:stop], stop - start
        holes = [(-round(BEFORE_S * rate), 0), (n, n + round(AFTER_S * rate))]
    if method == "ours":
        return _ours(case, pipelines, kept, holes)
    edited, seams, new, shift = kept.astype(np.float64), [], [], max(0, -holes[0][0])
    edited = np.pad(edited, (shift, max(0, holes[-1][1] - len(kept))))
    for i, (first, last) in enumerate(holes):
        part = (_spliced if method == "splice" else _varied)(case, pipelines, kept, first, last, i)
        _put(edited, part, first + shift, last + shift, rate)
        new.append([(first + shift) / rate, (last + shift) / rate])
        seams += [t / rate + shift / rate for t in (first, last) if 0 <= t <= len(kept) and 0 < t + shift < len(edited)]
    return edited, {"seams_s": seams, "new_s": new, "shift_s": shift / rate}


def _ours(case: Case, pipelines: Pipelines, kept: np.ndarray, holes: list) -> tuple[np.ndarray, dict]:
    rate = case.piece.rate
    made = pipelines.inpaint(
        case.piece.prompt,
        kept.astype(np.float32),
        rate,
        mask_start_seconds=[first / rate for first, _ in holes],
        mask_end_seconds=[last / rate for _, last in holes],
        **options(case.seed),
    )
    (edited,), (seams,), (regions,) = made.audios, made.seams_s, made.regions_s
    told = {"seams_s": list(seams), "new_s": [list(r) for r in regions], "shift_s": max(0, -holes[0][0]) / rate}
    return np.asarray(edited, np.float64), told


def _level(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.square(waveform, dtype=np.float64).mean() + 1e-12))


def _spliced(case: Case, pipelines: Pipelines, kept: np.ndarray, first: int, last: int, i: int) -> np.ndarray:
    rate = case.piece.rate
    seconds = (last - first) / rate + 2 * FADE_S
    (made,) = pipelines.text(case.piece.prompt, audio_length_in_s=seconds, **options(case.seed + i)).audios
    return made * (_level(kept) / _level(made))


def _varied(case: Case, pipelines: Pipelines, kept: np.ndarray, first: int, last: int, i: int) -> np.ndarray:
    """The part of a variation, with the fades' surroundings."""
    rate, context = case.piece.rate, round(CONTEXT_S * case.piece.rate)
    fade = round(FADE_S * rate)
    mirrored = np.pad(kept, (max(0, -first) + context + fade, max(0, last - len(kept)) + context + fade), "reflect")
    shift = max(0, -first) + context + fade
    window = mirrored[first + shift - context : last + shift + context]
    (made,) = pipelines.vary(
        case.piece.prompt, window.astype(np.float32), rate, init_noise_level=NOISE_LEVEL, **options(case.seed + i)
    ).audios
    return made[context - fade : len(made) - context + fade]


def _put(edited: np.ndarray, part: np.ndarray, first: int, last: int, rate: int) -> None:
    """Write ``part``, which begins a fade before ``first``, into ``edited``; the fades lie inside the region."""
    fade, new = round(FADE_S * rate), part[round(FADE_S * rate) :][: last - first]
    old = edited[first:last].copy()
    share = np.ones(len(new))
    if first > 0:
        share[:fade] = np.linspace(0, 1, fade)
    if last < len(edited):
        share[-fade:] = np.minimum(share[-fade:], np.linspace(1, 0, fade))
    angle = share * np.pi / 2
    edited[first:last] = new * np.sin(angle) + old * np.cos(angle)
