"""A model that is opened once and makes music of requests, also from several threads at a time.

    Request -> pipeline with the request's sampler and adapters -> waveform, score, comparison -> Piece with its recipe

The parts of the model are shared by all calls and never changed; what belongs to a call lives in the call.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from musicldm.config.values import check_kind, check_whole, shown
from musicldm.editing import Source
from musicldm.generate import editor
from musicldm.generate.adapters import load_adapters
from musicldm.generate.calls import Cancel, Progress, batches, options, seeded, watch_steps
from musicldm.generate.contexts import ALONG, Wanted, arguments, check_followed, fitted, known_kinds, with_recording
from musicldm.generate.edit import Edit, request_of
from musicldm.generate.environment import choose_device, choose_dtype, model_revision, package_versions
from musicldm.generate.pieces import Piece
from musicldm.generate.preparing import made_anew, prepare
from musicldm.generate.recipe import Request, Settings, check_opening, compose, random_seed
from musicldm.generate.tempo import AT_ONCE, Noise, Output, TempoError, in_tempo, seam_of, sketch_for
from musicldm.models.loading import find_folder
from musicldm.novelty import CopyError
from musicldm.novelty.guard import CopyGuard
from musicldm.pipelines.checks import plan_lengths
from musicldm.pipelines.memory import check_memory, decoding_memory
from musicldm.pipelines.optimize import prepare_launches
from musicldm.pipelines.outputs import MusicLDMPipelineOutput
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling import prepare_later_timesteps
from musicldm.sampling.schedulers import make_scheduler
from musicldm.scores.sketches import Sketch

WAVEFORMS_AT_ONCE = {"cpu": 4}  # prompts times candidates in one batch; more gains nothing on a CPU
WAVEFORMS_AT_ONCE_ELSEWHERE = 16
# Longer music of one prompt is denoised in windows, at linear cost. Up to there one look at the whole costs no more and
# holds together better: its clips of 10 s are more alike than those of windows, and as near to their prompt.
WINDOWS_FROM_S = 120.0
VARIANTS = 2  # models with adapters that are kept beside the plain one
GUARDS = 4


class Session:
    """A model, ready to make music; see `Request` for what can be asked of it.

    Args:
        model: a bundled model, a folder, or ``owner/name`` on the hub.
        device: auto (the fastest there is), cpu, cuda, cuda:1, mps, ...
        dtype: auto (float16 on CUDA, float32 elsewhere), float32, float16 or bfloat16.
        fast: on a CPU that computes it natively, use bfloat16: nearly the same music in less time.

    Attributes:
        model: what recipes call the model.
        folder: where it lies.
        revision: of the folder, 12 hexadecimal digits.
        device: a `torch.device`.

    Raises:
        ValueError: for a device, a number format or a model that there is not, or a damaged folder.
        OSError: if the hub cannot be reached or lacks the name.
    """

    def __init__(self, model: str | Path = "mini", device: str = "auto", dtype: str = "auto", fast: bool = True):
        check_opening(model, dtype, fast)
        check_kind("device", device, str, "the name of a device, such as cpu")
        self.model, self.fast, self.device = str(model), fast, choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.folder = find_folder(model, MusicLDMPipeline.download)
        self.revision = model_revision(self.folder)
        self._plain = MusicLDMPipeline.from_pretrained(self.folder, torch_dtype=self.dtype).to(self.device)
        self._plain.set_progress_bar_config(disable=True)
        self._plain.optimize(bfloat16=None if fast else False)
        self._lock = threading.Lock()
        self._variants: dict[tuple, tuple[MusicLDMPipeline, dict[str, str]]] = {}
        self._guards: dict[tuple, CopyGuard] = {}

    def pipeline(self, wanted: Settings) -> MusicLDMPipeline:
        """A pipeline with the wanted adapters and sampler, which shares the session's parts; for any number of calls.

        Raises:
            OSError: if there is no such adapter.
            ValueError: if an adapter or the sampler does not fit the model.
        """
        pipeline = copy.copy(self._variant(wanted)[0])
        pipeline.scheduler = make_scheduler(wanted.scheduler, pipeline.scheduler)
        return pipeline

    def about(self, wanted: Settings) -> dict:
        """The fields of a recipe that say which model, adapters, device and packages make what is wanted."""
        return {
            "model": self.model,
            "dtype": str(self.dtype).removeprefix("torch."),
            "fast": self.fast,
            "revision": self.revision,
            "adapters": self._variant(wanted)[1],
            "device": self.device.type,
            "versions": package_versions(),
        }

    def memory(self, requests: list[Request]) -> int:
        """About how many bytes decoding ``requests`` will take at most, beside the model.

        Raises:
            ValueError: if that, or denoising, needs more than the device has.
        """
        most = 0
        for batch in batches(self.checked(requests), self.waveforms_at_once):
            wanted, in_sections = batch[0], sum(seconds for _, seconds in batch[0].sections)
            at_a_time = wanted.candidates if wanted.bpm is None else min(wanted.candidates, AT_ONCE)
            seconds = in_sections or wanted.seconds
            shape = self._checked_shape(len(batch) * at_a_time, seconds, bool(in_sections) or _in_windows(wanted))
            most = max(most, decoding_memory(self._plain.vae, self._plain.vocoder, shape, self.device))
        return most

    def checked(self, requests: Iterable[Wanted]) -> list[Wanted]:
        """``requests``, those along with a recording with its hash and length.

        Raises:
            ValueError: if the model does not take, or cannot hear, what one of them follows.
            OSError: if a recording cannot be read.
        """
        requests = list(requests)
        for one in requests:
            check_followed(one, self._plain, self.model)
        return [with_recording(one) for one in requests]

    @property
    def context_kinds(self) -> tuple[str, ...]:
        """Kinds of context that the model takes; empty if it takes none."""
        return known_kinds(self._plain)

    def _checked_shape(self, n_items: int, seconds: float | None, in_windows: bool) -> tuple[int, ...]:
        """The shape of latents for that; ValueError if it needs more memory than there is."""
        parts = self._plain.unet, self._plain.vae, self._plain.vocoder
        shape = plan_lengths(*parts, n_items, seconds).latent_shape
        at_once = n_items * plan_lengths(*parts, 1).latent_shape[2] if in_windows else None
        check_memory(*parts, shape, self.device, at_once)
        return shape

    @property
    def waveforms_at_once(self) -> int:
        """How many waveforms, prompts times candidates, one batch has."""
        return WAVEFORMS_AT_ONCE.get(self.device.type, WAVEFORMS_AT_ONCE_ELSEWHERE)

    def run(
        self,
        request: Request | Edit,
        progress: Callable[[Progress], object] | None = None,
        cancel: Cancel | None = None,
    ) -> Piece:
        """The music of one request, or what one edit makes of its recording; arguments and errors of `run_many`."""
        return next(self.run_many([request], progress, cancel))

    def run_many(
        self,
        requests: Iterable[Request | Edit],
        progress: Callable[[Progress], object] | None = None,
        cancel: Cancel | None = None,
        at_once: int | None = None,
    ) -> Iterator[Piece]:
        """A piece for each of ``requests``, in their order, as soon as its batch is done.

        Neighbours that differ in nothing but prompt and seed are made in one batch, of ``at_once`` waveforms at most;
        a piece is the same in any batch up to rounding. Edits, whose pieces are `EditedPiece`, are made one by one.
        ``progress`` is called after each step; ``cancel``, an event or a function, is asked then too.

        Raises:
            Cancelled: when ``cancel`` says so; pieces that are complete have been given already.
            CopyError: (a ValueError) after all others, if the copy guard refused some; ``refused`` are their numbers
                from 0.
            TempoError: (a ValueError) likewise, if no candidate came near a tempo that was asked for.
            ValueError: if a request cannot be fulfilled by this model or on this device, or a recording not be edited.
            OSError: if an adapter, an index or a recording cannot be read.
        """
        requests = list(requests)
        for one in requests:
            check_kind("a request", one, (Request, Edit), "a musicldm.generate.Request, or an Edit")
        if at_once is not None:
            check_whole("at_once", at_once)
        for name, function in (("progress", progress), ("cancel", cancel)):
            if function is not None and not (callable(function) or isinstance(function, threading.Event)):
                raise ValueError(f"{name} must be a function, or None, got {function!r}")
        requests = self.checked(requests)
        refusals: list[str] = []
        refused: list[int] = []
        out_of_tempo: list[str] = []
        first = 0
        pieces: Iterable[Piece]
        for batch in batches(requests, at_once or self.waveforms_at_once):
            last = first + len(batch)
            where = Progress(0, self._steps(batch[0]), first + 1, last, len(requests))
            watch = partial(watch_steps, progress, cancel, where)
            batch = [replace(one, seed=random_seed()) if one.seed is None else one for one in batch]
            try:
                pieces = self._edited(batch[0], watch) if isinstance(batch[0], Edit) else self._made(batch, watch)
            except CopyError as error:
                refusals.append(str(error))
                missing = error.refused or (0,)  # an edit comes alone
                pieces = [] if isinstance(batch[0], Edit) else self._pieces(batch, error.output, missing)
                refused += [first + i for i in missing]
            except TempoError as error:
                out_of_tempo.append(str(error))
                pieces = []
            yield from pieces
            first = last
        if refusals:
            raise CopyError(" ".join(refusals + out_of_tempo), refused=tuple(refused))
        if out_of_tempo:
            raise TempoError("; ".join(out_of_tempo))

    def _edited(self, edit: Edit, watch: Callable) -> list[Piece]:
        edit, source = prepare(edit)
        if edit.kind == "retake":
            (music,) = self._made(self.checked([request_of(edit)]), watch, editor.turned(edit))
            return [editor.retaken(edit, source, music)]
        longest = max(1.0, *(stop - start for start, stop in made_anew(edit, source)))
        self._checked_shape(edit.candidates, longest, in_windows=True)
        judge = None
        if edit.novelty is not None:
            judge = partial(self._guard(edit).judge, max_similarity=edit.max_similarity)
        return [editor.make(edit, source, partial(self._draw, source, watch), judge, self.about(edit))]

    def _made(
        self, batch: list[Request], watch: Callable, noise: Callable[[int], torch.Generator] | None = None
    ) -> list[Piece]:
        """The music of requests that are alike; ``noise`` gives the generator of a seed."""
        if batch[0].bpm is not None:  # comes alone
            return [self._in_tempo(batch[0], watch, noise or seeded)]
        return list(self._pieces(batch, self._call(batch, watch, noise or seeded), ()))

    def _call(self, batch: list[Request], watch: Callable, noise: Callable[[int], torch.Generator]):
        """The pipeline's output, with the best candidate of each request."""
        wanted = batch[0]
        if wanted.sections:
            return self._call_sections(wanted, watch, noise)
        make: Callable = self.pipeline(wanted)
        if wanted.novelty is not None:
            make = partial(self._guard(wanted), mode=wanted.novelty, max_similarity=wanted.max_similarity)
        seeds = [one.seed + k for one in batch if one.seed is not None for k in range(one.candidates)]
        return make(
            [one.prompt for one in batch],
            audio_length_in_s=wanted.seconds,
            return_best=1,
            loop=wanted.loop,
            windows=_in_windows(wanted),
            **arguments(wanted, fitted(wanted.sketch, wanted.seconds)),
            **options(wanted, [noise(seed) for seed in seeds], watch),
        )

    def _call_sections(self, request: Request, watch: Callable, noise: Callable[[int], torch.Generator]):
        """The same for a piece in sections."""
        pipeline = self.pipeline(request)

        def draw(wanted: Request, **others):
            generators = [noise(wanted.seed + k) for k in range(wanted.candidates)]
            given = options(wanted, generators, watch) | arguments(wanted, wanted.sketch)
            return editor.sections(pipeline, wanted, given | others)

        if request.novelty is None:
            return draw(request, return_best=1)
        judge = partial(self._guard(request).judge, max_similarity=request.max_similarity)
        rate, name = pipeline.sampling_rate, shown(request.prompt)
        chosen, novelty = editor.guarded(request, name, rate, lambda one: editor.as_candidates(draw(one)), judge)
        samples = chosen.patches[0].samples
        scores = None if chosen.score is None else np.array([[chosen.score]])
        return MusicLDMPipelineOutput(samples if len(samples) == 1 else samples[None], rate, scores, [novelty])

    def _in_tempo(self, request: Request, watch: Callable, noise: Noise) -> Piece:
        """The piece of a request with a tempo, chosen among candidates."""
        pipeline = self.pipeline(request)
        made = in_tempo(request, pipeline, partial(self._waveforms, watch), noise)
        sketch = sketch_for(request, pipeline)
        found = {"sampling_rate": pipeline.sampling_rate, "nearest_training_clips": made.novelty} | made.found
        found |= _kinds(sketch, request)
        recipe = compose(replace(request, take=made.take), self.about(request), found)
        return Piece(made.waveform, pipeline.sampling_rate, recipe, found["score"], made.novelty, sketch)

    def _waveforms(self, watch: Callable, batch: list[Request], noise: Noise) -> list[Output | None]:
        """What is made for requests that are alike, and what was found when it was compared; None if it was refused."""
        missing: tuple[int, ...] = ()
        try:
            output = self._call(batch, watch, noise)
        except CopyError as error:
            output, missing = error.output, error.refused
        judged = output.novelty or [None] * len(batch)
        return [None if i in missing else (output.audios[i], judged[i]) for i in range(len(batch))]

    def _draw(self, source: Source, watch: Callable, edit: Edit) -> list[editor.Candidate]:
        """The candidates of a prepared edit of ``source``, best first."""
        pipeline = self.pipeline(edit)
        draw = editor.vary if edit.kind == "vary" else editor.replace_parts
        generators = [seeded(edit.seed + k) for k in range(edit.candidates)]
        return draw(pipeline, edit, source, options(edit, generators, watch))

    def _steps(self, wanted: Settings) -> int:
        """How many steps of the sampler are run for ``wanted``; a variation begins after the noisiest."""
        if not isinstance(wanted, Edit) or wanted.kind != "vary":
            return wanted.steps
        scheduler = copy.deepcopy(self.pipeline(wanted).scheduler)
        return prepare_later_timesteps(scheduler, wanted.steps, wanted.amount)[1]

    def _pieces(self, batch: list[Request], output, missing: tuple[int, ...]) -> Iterator[Piece]:
        for i, request in enumerate(batch):
            if i in missing:
                continue
            waveform, rate = output.audios[i], output.sampling_rate
            score = None if output.scores is None else float(output.scores[i, 0])
            novelty = None if output.novelty is None else output.novelty[i]
            found = {
                "seconds": waveform.shape[-1] / rate,
                "score": score,
                "sampling_rate": rate,
                "nearest_training_clips": novelty,
            }
            if request.loop:
                found["seam_quantile"] = seam_of(waveform, rate)
            sketch = fitted(request.sketch, found["seconds"])
            found |= _kinds(sketch, request)
            yield Piece(waveform, rate, compose(request, self.about(request), found), score, novelty, sketch)

    def _variant(self, wanted: Settings) -> tuple[MusicLDMPipeline, dict[str, str]]:
        """The pipeline with the wanted adapters, and the revision of each; the parts that they change are copies."""
        if not wanted.lora and not wanted.concept:
            return self._plain, {}

        def make() -> tuple[MusicLDMPipeline, dict[str, str]]:
            pipeline = copy.copy(self._plain)
            for name in ("unet", "text_encoder", "tokenizer") if wanted.concept else ("unet",):
                setattr(pipeline, name, copy.deepcopy(getattr(pipeline, name)))
            revisions = load_adapters(pipeline, wanted.lora, wanted.concept)
            if pipeline.step_graphs is not None:
                prepare_launches(pipeline)
            return pipeline, revisions

        return self._kept(self._variants, (wanted.lora, wanted.concept), make, VARIANTS)

    def _guard(self, request: Settings) -> CopyGuard:
        """The guard of the request's index, around its pipeline."""
        key = request.lora, request.concept, request.scheduler, request.index
        return self._kept(self._guards, key, partial(CopyGuard, self.pipeline(request), request.index), GUARDS)

    def _kept(self, kept: dict, key: tuple, make: Callable, most: int):
        """The entry ``key`` of ``kept``, made if it is not there; the ``most`` that were used last stay."""
        with self._lock:
            kept[key] = kept.pop(key) if key in kept else make()  # the last used stands last
            while len(kept) > most:
                del kept[next(iter(kept))]
            return kept[key]


def _in_windows(wanted: Request) -> bool:
    """Whether its music is denoised in windows: if it is long, or follows something, which says what comes where."""
    return wanted.keeps_time or (wanted.seconds is not None and wanted.seconds > WINDOWS_FROM_S)


def _kinds(sketch: Sketch | None, request: Request) -> dict:
    """What a recipe says of the kinds of context that were followed, if any."""
    kinds = (*(() if sketch is None else sketch.kinds), *(() if request.along is None else (ALONG,)))
    return {"context_kinds": list(kinds)} if kinds else {}
