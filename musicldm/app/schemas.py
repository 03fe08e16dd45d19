"""What the HTTP interface takes and gives.

    JSON or form -> Generation or Editing -> requests of `musicldm.generate`

Fields have the names of the Python call. ACE-Step's names are taken where they mean the same; those of its fields that
have no counterpart here are left out, and named in the answer's header `Ignored-Fields`.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from musicldm.generate.edit import Edit
from musicldm.generate.preparing import prepare
from musicldm.generate.recipe import Request, random_seed
from musicldm.generate.sketching import Parts, gather, whole_bars
from musicldm.sampling.schedulers import GUIDANCE, GUIDANCE_INTERVAL, SAMPLER, STEPS
from musicldm.scores.sketches import Rhythm, Sketch

MOST_RESULTS = 16  # of a job
NESTED = ("metas", "metadata", "user_metadata")  # objects in which ACE-Step's clients may pass fields
# Fields of ACE-Step that other models of its need, or that say how its language model works.
IGNORED = frozenset(
    """
    lyrics vocal_language thinking sample_mode sample_query description desc use_format format use_random_seed shift
    infer_method timesteps use_adg audio_code_string lm_model_path lm_backend lm_temperature lm_cfg_scale
    lm_negative_prompt lm_top_k lm_top_p lm_repetition_penalty use_cot_caption use_cot_language constrained_decoding
    constrained_decoding_debug allow_lm_batch instruction reference_audio ref_audio audio_format ai_token
    """.split()  # noqa: SIM905
)
TASKS = {"repaint": "inpaint", "cover": "vary"}  # ACE-Step's kinds of tasks that change a recording, and ours
OTHER_NAMES = {  # of fields
    "caption": "prompt",
    "audio_duration": "audio_length_in_s",
    "duration": "audio_length_in_s",
    "target_duration": "audio_length_in_s",
    "inference_steps": "num_inference_steps",
    "batch_size": "num_waveforms_per_prompt",
    "time_signature": "meter",
    "timesignature": "meter",
    "key_scale": "key",
    "keyscale": "key",
    "repainting_start": "mask_start_seconds",
    "repainting_end": "mask_end_seconds",
    "init_noise_level": "amount",
}
METRES = {"2": "2/4", "3": "3/4", "4": "4/4", "6": "6/8"}  # as ACE-Step names them


def _listed(value: Any) -> Any:
    """A list that a form gives as JSON, or a single value of it."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return [value] if isinstance(value, int | float | str) and not isinstance(value, bool) else value


def _no_seed(value: Any) -> Any:
    return None if value in (-1, "-1", "") else value


def _numbers(value: Any) -> Any:
    """Numbers with commas between them as a list."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",")]
    return _listed(value)


Times = Annotated[list[float], BeforeValidator(_listed)]
Tracks = Annotated[list[int] | None, BeforeValidator(_numbers)]
Seed = Annotated[int | None, BeforeValidator(_no_seed), Field(description="None or -1: a random one")]


class Body(BaseModel):
    """What generations and edits have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="one of /v1/models; None: the server's default")
    num_inference_steps: int = Field(STEPS, ge=1, le=1000)
    guidance_scale: float = Field(GUIDANCE, gt=0)
    guidance_interval: tuple[float, float] = GUIDANCE_INTERVAL
    negative_prompt: str = ""
    scheduler: str = SAMPLER
    seed: Seed = None
    num_waveforms_per_prompt: int = Field(1, ge=1, le=MOST_RESULTS, description="results, of seeds in turn")
    bpm: float | None = None
    meter: str | None = None
    chords: str | None = Field(
        None, description="to follow, such as Am F C G; models say in context_kinds what they take"
    )
    rhythm: Rhythm | None = Field(None, description="of the chords")
    tracks: Tracks = Field(None, description="of the file midi, counted from 1; by default all")
    context_guidance_scale: float | None = Field(
        None, ge=0, description="how strongly to follow; 1 where none is given"
    )

    def score(self, files: dict[str, Path]) -> Sketch | None:
        """What is to be followed: the chords, and the ``files`` midi and melody; errors of `gather`."""
        parts = Parts(files.get("midi"), self.tracks, self.chords, self.rhythm, files.get("melody"))
        return gather(parts, self.bpm, self.metre)

    @property
    def metre(self) -> str | None:
        """``meter`` as it is named here."""
        return METRES.get(self.meter or "", self.meter)

    def settings(self) -> dict[str, Any]:
        """Settings of a request of `musicldm.generate`."""
        return {
            "steps": self.num_inference_steps,
            "guidance": self.guidance_scale,
            "guidance_interval": self.guidance_interval,
            "negative": self.negative_prompt,
            "scheduler": self.scheduler,
        }


class Generation(Body):
    """New music."""

    prompt: str
    audio_length_in_s: float | None = Field(None, gt=0)
    candidates: int = Field(1, ge=1, le=16, description="made for each result, of which the best one is kept")
    loop: bool = False
    bars: int | None = None
    along: str | None = Field(None, description="id of a result that it goes along with; or upload a file as along")
    key: str | None = Field(None, description="such as C major, or Am")
    novelty: Literal["report", "avoid", "least_similar"] | None = None
    max_similarity: float | None = None
    task_type: Literal["text2music"] = "text2music"

    def requests(self, sketch: Sketch | None = None, along: Path | None = None) -> list[Request]:
        """A request for each result, of music that follows ``sketch`` and goes along with the recording ``along``.

        Raises:
            ValueError: naming a value that cannot be used, and what can.
        """
        prompt = f"{self.prompt.rstrip(' .,')}, in {self.key}" if self.key else self.prompt
        given = {
            "seconds": self.audio_length_in_s,
            "candidates": self.candidates,
            "novelty": self.novelty,
            "max_similarity": self.max_similarity,
            "loop": self.loop,
            "bpm": self.bpm,
            "bars": self.bars,
            "meter": None if self.chords and self.bpm is None else self.metre,
            "context": sketch,
            "along": along,
            "context_guidance": self.context_guidance_scale,
        }
        if sketch is not None and self.loop and self.bpm is not None and self.bars is None:
            given["bars"] = whole_bars(sketch, self.bpm, self.metre)
        known = {one.name for one in fields(Request)}
        given = {name: value for name, value in given.items() if value is not None and (name in known or value)}
        seed = random_seed() if self.seed is None else self.seed
        prompts = [prompt] * self.num_waveforms_per_prompt
        return Request.for_prompts(prompts, seed, **self.settings(), **given)


class Editing(Body):
    """A change of a recording: of an uploaded file, ``audio``, or of an earlier result, ``source``."""

    kind: Literal["vary", "inpaint", "extend", "retake"]
    source: str | None = Field(None, description="id of a result; or upload a file as audio")
    prompt: str | None = None
    mask_start_seconds: Times = []
    mask_end_seconds: Times = []
    before_s: float = Field(0.0, ge=0)
    after_s: float = Field(0.0, ge=0)
    amount: float | None = Field(None, ge=0, le=1)
    snap: Literal["beat", "none"] | None = None

    def edits(self, path: str, sketch: Sketch | None = None) -> list[Edit]:
        """An edit of the recording at ``path``, whose new parts follow ``sketch``, for each result.

        Raises:
            OSError: if it cannot be read.
            ValueError: naming a value that cannot be used, and what can.
        """
        ends = [None if end == -1 else end for end in self.mask_end_seconds]
        starts = self.mask_start_seconds
        if len(starts) != len(ends):
            if len(starts) > len(ends) + 1 or len(ends) > len(starts) + 1:
                raise ValueError(f"there are {len(starts)} mask_start_seconds and {len(ends)} mask_end_seconds")
            starts, ends = (starts, [*ends, None]) if len(starts) > len(ends) else ([0.0, *starts], ends)
        places = {
            "regions_s": tuple(zip(starts, ends, strict=True)),
            "before_s": self.before_s,
            "after_s": self.after_s,
        }
        given = {name: value for name, value in places.items() if value}
        given |= {name: getattr(self, name) for name in ("prompt", "amount", "snap") if getattr(self, name) is not None}
        given |= {} if sketch is None else {"context": sketch}
        if self.context_guidance_scale is not None:
            given["context_guidance"] = self.context_guidance_scale
        if self.bpm is not None and self.chords is None:
            raise ValueError("bpm of an edit is the tempo of its chords; give chords, or leave bpm out")
        if self.kind == "retake" and (sketch is not None or self.context_guidance_scale is not None):
            raise ValueError("a retake follows what its source did; leave chords, midi, melody and their guidance out")
        if self.kind == "retake":  # everything else is as its recipe says
            given = {name: given[name] for name in ("prompt", "amount") if name in given}
        else:
            given |= self.settings()
        seed = random_seed() if self.seed is None else self.seed
        edits = [Edit(self.kind, path, seed=seed + i, **given) for i in range(self.num_waveforms_per_prompt)]
        prepare(replace(edits[0], snap="none"))  # opens the recording: what is wrong is known before anything is made
        return edits


class JobState(BaseModel):
    """Where a job is."""

    id: str
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    position: int | None = Field(description="in the queue, 1 is next; None unless queued")
    step: int
    steps: int
    seconds_left: float | None = Field(description="an estimate; None while nothing is known")
    results: list[str] = Field(description="ids of what is made; the first is that of the job")
    error: str | None


class Result(BaseModel):
    """A piece of music in the library."""

    id: str
    name: str
    file: str = Field(description="its name in the server's folder")
    created: float = Field(description="seconds since 1970")
    seconds: float
    sampling_rate: int
    channels: int
    kind: str = Field(description="generate, vary, inpaint, extend or retake")
    prompt: str
    parent: str | None = Field(description="the result that it was made from")
    starred: bool
    recipe: dict[str, Any]


class Change(BaseModel):
    """Of a result."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, min_length=1, max_length=200)
    starred: bool | None = None
    deleted: bool | None = Field(None, description="true hides it; false brings it back")


class Model(BaseModel):
    """A model that may be asked for."""

    name: str
    default: bool
    loaded: bool
    sampling_rate: int
    channels: int
    seconds: float = Field(description="that it was trained on")
    license: str | None
    novelty: bool = Field(description="whether it carries an index of its training set")
    can: list[str] = Field(description="generate, loop, bpm, vary, inpaint, extend, retake, ...")
    context_kinds: list[str] = Field(description="what music can follow: notes, melody, chords, click, along, ...")


def flattened(body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a body by their names here, and the names of those that were left out.

    Snake case is taken for camel case. Fields inside `NESTED` objects hold where the body itself says nothing.

    Raises:
        ValueError: if one field is given under two names.
    """
    outer = _named({name: value for name, value in body.items() if name not in NESTED})
    inner = [_named(value) for name, value in body.items() if name in NESTED and isinstance(value, dict)]
    flat = {name: value for fields in (*inner, outer) for name, value in fields.items()}
    if flat.get("use_random_seed") in (True, "true"):
        flat.pop("seed", None)
    ignored = sorted(name for name in flat if name in IGNORED and flat[name] not in ("", None, False, "false"))
    return {name: value for name, value in flat.items() if name not in IGNORED}, ignored


def _named(fields: dict[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for given, value in fields.items():
        name = OTHER_NAMES.get(snake(given), snake(given))
        if name in named:
            raise ValueError(f"the field {name!r} is given under two names, one of them {given!r}; give one")
        named[name] = value
    return named


def snake(name: str) -> str:
    """``audioDuration`` as ``audio_duration``."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
