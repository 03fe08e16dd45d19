"""What music follows: a sketch, a recording that it goes along with, or both, as the pipelines are given it.

Request or Edit with a context, model  ->  checked  ->  arguments of a pipeline's call; what its recipe says
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from musicldm.audio.reading import open_audio
from musicldm.config.values import shown
from musicldm.generate.edit import Edit, file_sha256
from musicldm.generate.environment import context_kinds
from musicldm.generate.recipe import Request
from musicldm.models.context import context_layout
from musicldm.models.loading import bundled_models
from musicldm.pipelines.base import MusicLDMBase
from musicldm.scores.hearing import check_audible
from musicldm.scores.sketches import Sketch
from vocoder import mel_config

CLICK, ALONG = "click", "along"
WITH_BEATS = {"notes", "drums", CLICK}  # kinds of sketches that say where the beats are
Wanted = TypeVar("Wanted", Request, Edit, Request | Edit)


def known_kinds(pipeline: MusicLDMBase) -> tuple[str, ...]:
    """Kinds of context that the model takes; empty if it takes none."""
    layout = context_layout(pipeline.unet)
    return () if layout is None else layout.kinds


def with_recording(request: Wanted) -> Wanted:
    """``request`` with the hash of the recording that it goes along with, and its length where it has none.

    Raises:
        OSError: if the recording cannot be read.
        ValueError: if it is no audio, or another one than the request's hash says.
    """
    if isinstance(request, Edit) or request.along is None:
        return request
    found = file_sha256(request.along)
    if request.along_sha256 not in (None, found):
        raise ValueError(
            f"{request.along} is another recording than the one that the music was made along with: its SHA-256 is "
            f"{found}, that of the recipe is {request.along_sha256}; name the right one with along (--along)"
        )
    seconds = request.seconds
    if seconds is None:
        with open_audio(request.along) as audio:
            seconds = max(audio.duration_s, 0.0 if request.sketch is None else request.sketch.seconds)
    return replace(request, along_sha256=found, seconds=seconds)


def check_followed(wanted: Request | Edit, pipeline: MusicLDMBase, model: str) -> None:
    """ValueError unless the ``model`` with ``pipeline`` takes what is ``wanted`` as a context, and can hear it."""
    sketch, along = wanted.sketch, isinstance(wanted, Request) and wanted.along is not None
    kinds = (*(() if sketch is None else sketch.kinds), *((ALONG,) if along else ()))
    if not kinds:
        return
    known = known_kinds(pipeline)
    if not known:
        able = [name for name, folder in bundled_models().items() if context_kinds(folder)]
        way_out = f"a bundled model that does: {', '.join(able)}" if able else "none of the bundled models does"
        raise ValueError(
            f"{model} follows no {' and no '.join(kinds)}, its UNet has no channels for a context; {way_out}"
        )
    if unknown := [kind for kind in kinds if kind not in known]:
        raise ValueError(f"{model} knows no context of kind {shown(unknown[0])}; it knows {', '.join(known)}")
    if sketch is not None:
        check_audible(sketch, mel_config(pipeline.vocoder))


def arguments(wanted: Request | Edit, sketch: Sketch | None = None) -> dict:
    """What the call of a pipeline is given of what ``wanted`` follows: ``sketch``, and its recording if it has one.

    Sounds of both are mixed by the pipeline, which hears each as its own kinds.
    """
    along = wanted.along if isinstance(wanted, Request) else None
    if sketch is None and along is None:
        return {}
    context: Sketch | dict = sketch
    if along is not None:
        context = {ALONG: along} | ({} if sketch is None else {sketch.kinds: sketch})
    return {"context": context, "context_guidance_scale": wanted.context_guidance}


def with_click(sketch: Sketch | None, request: Request, pipeline: MusicLDMBase, seconds: float) -> Sketch | None:
    """``sketch`` and, if the model takes clicks, one on each beat of the tempo of ``request``, for ``seconds``.

    Whole scores, drums and recordings have beats of their own: they are left alone.
    """
    has_beats = request.along is not None or (sketch is not None and not WITH_BEATS.isdisjoint(sketch.kinds))
    if has_beats or CLICK not in known_kinds(pipeline):
        return sketch
    click = Sketch.click(request.bpm, request.meter or "4/4", seconds=seconds)
    return click if sketch is None else sketch + click


def fitted(sketch: Sketch | None, seconds: float | None) -> Sketch | None:
    """``sketch``, or its beginning if it lasts more than ``seconds``."""
    if sketch is None or seconds is None or sketch.seconds <= seconds:
        return sketch
    return sketch.cut(0, seconds)
