"""Edits made: candidates drawn by the pipelines, one of them chosen, and what a copy guard finds of its new parts.

Edit, Source -> `draw` -> candidates, best first -> copy guard -> EditedPiece
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator
from torch.nn import functional

from musicldm.config.values import shown
from musicldm.editing import Patch, Region, Source, to_samples
from musicldm.editing.levels import limits
from musicldm.editing.whole import fit_whole
from musicldm.generate.contexts import arguments, fitted
from musicldm.generate.edit import OWN, Edit
from musicldm.generate.pieces import EditedPiece, Piece
from musicldm.generate.preparing import made_anew
from musicldm.generate.recipe import Request, as_lists, compose
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.novelty import CopyError
from musicldm.novelty.guard import ROUNDS, CheckedDraw, choose, refusal
from musicldm.pipelines.audio_to_audio import MusicLDMAudioToAudioPipeline
from musicldm.pipelines.inpaint import MusicLDMInpaintPipeline
from musicldm.pipelines.long_form import MusicLDMLongFormPipeline, Section
from musicldm.pipelines.outputs import MusicLDMPipelineOutput
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling.turning import TurnedGenerator
from musicldm.scores.sketches import Sketch
from vocoder import mel_config


class Candidate(NamedTuple):
    """One way to make an edit."""

    patches: tuple[Patch, ...]  # what is new; of a retake the whole result
    score: float | None = None  # similarity to the prompt; None of one candidate
    seams_s: tuple[float, ...] = ()  # from the result's beginning
    remarks: tuple[str, ...] = ()  # what the model could not make as it was


Draw = Callable[[Any], list[Candidate]]  # of an edit, or a request
Judge = Callable[[np.ndarray, int], dict]


def make(edit: Edit, source: Source, draw: Draw, judge: Judge | None, about: dict) -> EditedPiece:
    """The piece that a prepared ``edit`` with a seed makes of ``source``.

    Args:
        draw: gives the candidates of an edit, best first.
        judge: finds what is too near the training set in a waveform (A, L) of a rate; None where nothing is compared.
        about: `Session.about` of the edit.

    Raises:
        CopyError: (a ValueError) if all that was drawn is too near it, and the edit says to avoid that.
    """
    if judge is None:
        chosen, novelty = draw(edit)[0], None
    else:
        chosen, novelty = guarded(edit, f"{source.name}, {shown(edit.prompt)}", source.rate, draw, judge)
    about_it = recipe(edit, source, about, chosen, novelty)
    start = min([0, *(patch.start for patch in chosen.patches)]) / source.rate
    sketch = placed(edit, source, start)
    return EditedPiece(source, chosen.patches, about_it, chosen.score, novelty, chosen.remarks, sketch=sketch)


def placed(edit: Edit, source: Source, start_s: float) -> Sketch | None:
    """What a prepared ``edit`` follows, in time from ``start_s`` of ``source`` on."""
    if edit.sketch is None:
        return None
    regions = made_anew(edit, source)
    first_s, last_s = regions[0][0], regions[-1][1]
    return fitted(edit.sketch, last_s - first_s).shifted(max(0.0, first_s - start_s))


def recipe(edit: Edit, source: Source, about: dict, chosen: Candidate, novelty: dict | None) -> dict:
    """The recipe of the edited file; its regions are in the source's time, its seams in the result's."""
    start = min([0, *(patch.start for patch in chosen.patches)])
    stop = max(patch.stop for patch in chosen.patches)
    whole = edit.kind == "retake"
    length = stop if whole else max(source.length, stop) - start
    regions = [(0.0, length / source.rate)] if whole else made_anew(edit, source)
    found = {
        "seconds": length / source.rate,
        "score": chosen.score,
        "sampling_rate": source.rate,
        "nearest_training_clips": novelty,
        "kind": edit.kind,
        "source": Path(source.name).name,
        "source_sha256": source.sha256(),
        "regions_s": as_lists(regions),
        "seams_s": as_lists(chosen.seams_s),
    }
    if edit.sketch is not None:
        found["context_kinds"] = list(edit.sketch.kinds)
    own = {name: as_lists(getattr(edit, name)) for name, kinds in OWN.items() if edit.kind in kinds}
    return compose(edit, about, found | own)


def guarded(wanted: Edit | Request, name: str, rate: int, draw: Draw, judge: Judge) -> tuple[Candidate, dict]:
    """The best candidate that the copy guard allows, and what it found; draws again with the next seeds.

    Args:
        wanted: with a seed; what it says of novelty is done.
        name: by which a refusal calls it.
        rate: of the candidates' samples, in Hz.

    Raises:
        CopyError: (a ValueError) if all that was drawn is too near the training set, and that is to be avoided.
    """
    candidates: list[Candidate] = []
    drawn: list[CheckedDraw] = []
    again = wanted.novelty != "report"
    for k in range(ROUNDS if again else 1):
        more = draw(replace(wanted, seed=wanted.seed + k * wanted.candidates))
        candidates += more
        judged = more if again else more[:1]
        drawn += [CheckedDraw(np.empty(0), one.score, _found(one, rate, judge)) for one in judged]
        if any(one.new for one in drawn):
            break
    if wanted.novelty == "avoid" and not any(one.new for one in drawn):
        raise CopyError(refusal([name], [drawn]))
    (best,) = choose(drawn, 1, wanted.novelty)
    at = next(i for i, one in enumerate(drawn) if one is best)
    return candidates[at], best.found | {"draws": len(drawn)}


def _found(candidate: Candidate, rate: int, judge: Judge) -> dict:
    """What is found of the new part of ``candidate`` that is the nearest to the training set."""

    def near(found: dict) -> tuple:
        return found["too_close"], found["verdict"] == "copy", found["similarity"] or -1.0

    found = max((judge(patch.samples, rate) for patch in candidate.patches), key=near)
    return found | {"steering": 0.0, "hum": False}


def vary(pipeline: MusicLDMPipeline, edit: Edit, source: Source, options: dict) -> list[Candidate]:
    """Variations of the whole of ``source``, best first; ``options`` are the pipeline's."""
    made = MusicLDMAudioToAudioPipeline.from_pipe(pipeline)(
        edit.prompt, edit.source, init_noise_level=edit.amount, windows=True, **arguments(edit, edit.sketch), **options
    )
    scores = [None] * len(made.audios) if made.scores is None else made.scores.ravel().tolist()
    patches = [fit_whole(source, waveform, made.sampling_rate) for waveform in made.audios]
    lacks = _remarks(pipeline, source, [(source.length // 2, source.length // 2)])
    return [Candidate((patch,), score, remarks=lacks) for patch, score in zip(patches, scores, strict=True)]


def replace_parts(pipeline: MusicLDMPipeline, edit: Edit, source: Source, options: dict) -> list[Candidate]:
    """``source`` with new regions, or extended, best first; ``options`` are the pipeline's."""
    regions = made_anew(edit, source)
    made = MusicLDMInpaintPipeline.from_pipe(pipeline)(
        edit.prompt,
        edit.source,
        mask_start_seconds=[start for start, _ in regions],
        mask_end_seconds=[stop for _, stop in regions],
        output_type="patches",
        windows=True,
        **(arguments(edit, edit.sketch) or {"context_guidance_scale": edit.context_guidance}),
        **options,
    )
    lacks = _remarks(pipeline, source, [to_samples(Region(*region), source.rate) for region in regions])
    pairs = zip(made.patches, made.seams_s, strict=True)
    found = [Candidate(tuple(patches), None, tuple(seams), lacks) for patches, seams in pairs]
    return found if len(found) == 1 else ranked(found, pipeline, edit, source.rate)


def sections(pipeline: MusicLDMPipeline, request: Request, options: dict) -> MusicLDMPipelineOutput:
    """The candidates of a piece in sections, best first; ``options`` are the pipeline's."""
    parts = [Section(prompt, seconds) for prompt, seconds in request.sections]
    return MusicLDMLongFormPipeline.from_pipe(pipeline)(parts, loop=request.loop, **options)


def as_candidates(made: MusicLDMPipelineOutput) -> list[Candidate]:
    """What was made of sections, for `guarded`."""
    scores = [None] * len(made.audios) if made.scores is None else made.scores.ravel().tolist()
    waveforms = map(np.atleast_2d, made.audios)
    pairs = zip(waveforms, scores, strict=True)
    return [Candidate((Patch(0, waveform.shape[1], waveform),), score) for waveform, score in pairs]


def _remarks(pipeline: MusicLDMPipeline, source: Source, regions: list[tuple[int, int]]) -> tuple[str, ...]:
    """A line for each thing around ``regions``, in samples, that the model cannot make."""
    found = (limits(source, region, mel_config(pipeline.vocoder)) for region in regions)
    return tuple(dict.fromkeys(line for line in found if line))


@torch.no_grad()
def ranked(candidates: list[Candidate], pipeline: MusicLDMPipeline, edit: Edit, rate: int) -> list[Candidate]:
    """``candidates`` with how well their new parts fit the prompt, in CLAP's space, best first.

    Raises:
        ValueError: if the model lacks a part of CLAP.
    """
    embedder = ClapEmbedder(pipeline.text_encoder, pipeline.feature_extractor, pipeline.sampling_rate)
    heard = [np.concatenate([patch.samples.mean(axis=0) for patch in one.patches]) for one in candidates]  # (L,) each
    embedded = embedder(torch.from_numpy(np.stack(heard)).float(), rate)  # (B, D)
    wanted = functional.normalize(pipeline.embed_texts([edit.prompt]).float(), dim=-1)  # (1, D)
    scores = embedded @ wanted[0].cpu().numpy()
    return [candidates[i]._replace(score=float(scores[i])) for i in np.argsort(-scores, kind="stable")]


def turned(edit: Edit) -> Callable[[int], Generator]:
    """What takes the place of a generator of a seed in the music of a retake: one whose noise is turned."""
    (first, _), *turns = edit.noise

    def seeded(seed: int) -> Generator:
        generator = Generator().manual_seed(seed)
        for other, share in (*turns, (edit.seed, edit.amount)):
            generator = TurnedGenerator(generator, Generator().manual_seed(other + seed - first), share)
        return generator

    return seeded


def retaken(edit: Edit, source: Source, music: Piece) -> EditedPiece:
    """The piece of a retake of ``source``, whose ``music`` was made of its noise."""
    samples = np.atleast_2d(music.waveform).astype(np.float64)
    chosen = Candidate((Patch(0, samples.shape[1], samples),), music.score)
    made = recipe(edit, source, music.recipe, chosen, music.novelty) | edit.music
    kinds = {name: music.recipe[name] for name in ("context_kinds",) if name in music.recipe}
    return EditedPiece(
        source, chosen.patches, made | kinds, music.score, music.novelty, replaces=True, sketch=music.sketch
    )
