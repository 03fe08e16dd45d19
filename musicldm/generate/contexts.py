"""What music follows: a sketch, a recording that it goes along with, or both, as the pipelines are given it.

Request or Edit with a context, model  ->  checked  ->  arguments of a pipeline's call; what its recipe says
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from musicldm.audio import read_audio
from musicldm.audio.reading import open_audio
from musicldm.config.values import shown
from musicldm.editing.source import SILENT
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
Wanted = TypeVar("Wanted", Request, Edit, Request | Edit)


@dataclass(frozen=True)
class Followed:
    """What one piece follows, of its exact length."""

    sketch: Sketch | None
    along: np.ndarray | None  # (L,) or (2, L) at the model's rate
    guidance: float

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of context; empty if it follows nothing."""
        sketched = () if self.sketch is None else self.sketch.kinds
        return sketched if self.along is None else (*sketched, ALONG)

    def arguments(self, pipeline: MusicLDMBase) -> dict:
        """Of the call of ``pipeline``; none if nothing is followed."""
        if not self.kinds:
            return {}
        guidance = {"context_guidance_scale": self.guidance}
        if self.along is None:
            return {"context": self.sketch} | guidance
        mel, audio = mel_config(pipeline.vocoder), self.along
        if self.sketch is not None:
            audio = audio + self.sketch.render(mel.sample_rate, mel.audio_channels)[..., : audio.shape[-1]]
        given = {"context": audio, "context_sampling_rate": mel.sample_rate, "context_kind": list(self.kinds)}
        return given | guidance


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
            seconds = audio.duration_s
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


def followed(request: Request, pipeline: MusicLDMBase) -> Followed:
    """What ``request``, of some length, follows on the model of ``pipeline``.

    Raises:
        OSError, ValueError: if the recording cannot be read, or is silent.
    """
    sketch, along = request.sketch, None
    mel, seconds = mel_config(pipeline.vocoder), request.seconds
    if sketch is not None and seconds is not None:
        sketch = fitted(sketch, seconds)
    if request.along is not None:
        audio, _ = read_audio(request.along, mel.sample_rate, mel.audio_channels)
        if np.abs(audio).max() < SILENT:
            raise ValueError(f"{request.along} is silent, so there is nothing to go along with; give another recording")
        length = audio.shape[-1] if seconds is None else round(seconds * mel.sample_rate)
        along = np.zeros((*audio.shape[:-1], length), np.float32)
        along[..., : audio.shape[-1]] = audio[..., :length]
    return Followed(sketch, along, request.context_guidance)


def with_click(sketch: Sketch | None, request: Request, pipeline: MusicLDMBase, seconds: float) -> Sketch | None:
    """``sketch`` and, if the model takes clicks, one on each beat of the tempo of ``request``, for ``seconds``."""
    if CLICK not in known_kinds(pipeline) or (sketch is not None and CLICK in sketch.kinds):
        return sketch
    click = Sketch.click(request.bpm, request.meter or "4/4", seconds=seconds)
    return click if sketch is None else sketch + click


def fitted(sketch: Sketch, seconds: float) -> Sketch:
    """``sketch`` of exactly ``seconds``: its beginning, or all of it and silence."""
    return sketch.cut(0, seconds) if seconds < sketch.seconds else replace(sketch, seconds=float(seconds))
