"""A model that is opened once and makes music of requests, also from several threads at a time.

    Request -> pipeline with the request's sampler and adapters -> waveform, score, comparison -> Piece with its recipe

The parts of the model are shared by all calls and never changed; what belongs to a call lives in the call.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from musicldm.config.values import check_kind, check_whole
from musicldm.generate.adapters import load_adapters
from musicldm.generate.environment import choose_device, choose_dtype, model_revision, package_versions
from musicldm.generate.pieces import Piece
from musicldm.generate.recipe import Request, Settings, check_opening, compose, random_seed
from musicldm.models.loading import find_folder
from musicldm.novelty import CopyError
from musicldm.novelty.guard import CopyGuard
from musicldm.pipelines.checks import plan_lengths
from musicldm.pipelines.memory import check_memory, decoding_memory
from musicldm.pipelines.optimize import prepare_launches
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling.schedulers import make_scheduler

WAVEFORMS_AT_ONCE = {"cpu": 4}  # prompts times candidates in one batch; more gains nothing on a CPU
WAVEFORMS_AT_ONCE_ELSEWHERE = 16
VARIANTS = 2  # models with adapters that are kept beside the plain one
GUARDS = 4

Cancel = threading.Event | Callable[[], bool]


class Cancelled(Exception):
    """The caller no longer wants the music that was being made."""


class Progress(NamedTuple):
    """Where the work on a batch of requests is; a copy guard that draws again begins at step 1 again."""

    step: int  # from 1 to ``steps``
    steps: int
    first: int  # number of the batch's first request among all, from 1
    last: int
    total: int  # of all requests


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
        for batch in batches(requests, self.waveforms_at_once):
            parts = self._plain.unet, self._plain.vae, self._plain.vocoder
            _, shape = plan_lengths(*parts, len(batch) * batch[0].candidates, batch[0].seconds)
            check_memory(*parts, shape, self.device)
            most = max(most, decoding_memory(self._plain.vae, self._plain.vocoder, shape, self.device))
        return most

    @property
    def waveforms_at_once(self) -> int:
        """How many waveforms, prompts times candidates, one batch has."""
        return WAVEFORMS_AT_ONCE.get(self.device.type, WAVEFORMS_AT_ONCE_ELSEWHERE)

    def run(
        self, request: Request, progress: Callable[[Progress], object] | None = None, cancel: Cancel | None = None
    ) -> Piece:
        """The music of one request; arguments and errors of `run_many`."""
        return next(self.run_many([request], progress, cancel))

    def run_many(
        self,
        requests: Iterable[Request],
        progress: Callable[[Progress], object] | None = None,
        cancel: Cancel | None = None,
        at_once: int | None = None,
    ) -> Iterator[Piece]:
        """A piece for each of ``requests``, in their order, as soon as its batch is done.

        Neighbours that differ in nothing but prompt and seed are made in one batch, of ``at_once`` waveforms at most;
        a piece is the same in any batch up to rounding. ``progress`` is called after each step; ``cancel``, an event
        or a function, is asked then too.

        Raises:
            Cancelled: when ``cancel`` says so; pieces that are complete have been given already.
            CopyError: (a ValueError) after all others, if the copy guard refused some; ``refused`` are their numbers
                from 0.
            ValueError: if a request cannot be fulfilled by this model or on this device.
            OSError: if an adapter or an index cannot be read.
        """
        requests = list(requests)
        for one in requests:
            check_kind("a request", one, Request, "a musicldm.generate.Request")
        if at_once is not None:
            check_whole("at_once", at_once)
        for name, function in (("progress", progress), ("cancel", cancel)):
            if function is not None and not (callable(function) or isinstance(function, threading.Event)):
                raise ValueError(f"{name} must be a function, or None, got {function!r}")
        refusals: list[str] = []
        refused: list[int] = []
        first = 0
        for batch in batches(requests, at_once or self.waveforms_at_once):
            last = first + len(batch)
            watch = partial(_watch, progress, cancel, Progress(0, batch[0].steps, first + 1, last, len(requests)))
            batch = [replace(one, seed=random_seed()) if one.seed is None else one for one in batch]
            missing: tuple[int, ...] = ()
            try:
                output = self._call(batch, watch)
            except CopyError as error:
                refusals.append(str(error))
                output, missing = error.output, error.refused
                refused += [first + i for i in missing]
            yield from self._pieces(batch, output, missing)
            first = last
        if refusals:
            raise CopyError(" ".join(refusals), refused=tuple(refused))

    def _call(self, batch: list[Request], watch: Callable):
        """The pipeline's output, with the best candidate of each request."""
        wanted = batch[0]
        make: Callable = self.pipeline(wanted)
        if wanted.novelty is not None:
            make = partial(self._guard(wanted), mode=wanted.novelty, max_similarity=wanted.max_similarity)
        watch(counter := itertools.count())
        seeds = [one.seed + k for one in batch if one.seed is not None for k in range(one.candidates)]
        circle = {"loop": True} if wanted.loop else {}
        return make(
            [one.prompt for one in batch],
            audio_length_in_s=wanted.seconds,
            num_inference_steps=wanted.steps,
            guidance_scale=wanted.guidance,
            guidance_interval=wanted.guidance_interval,
            negative_prompt=wanted.negative or None,
            num_waveforms_per_prompt=wanted.candidates,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            return_best=1,
            callback=lambda *_: watch(counter),
            **circle,
        )

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
            yield Piece(waveform, rate, compose(request, self.about(request), found), score, novelty)

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

    def _guard(self, request: Request) -> CopyGuard:
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


def batches(requests: list[Request], at_once: int) -> Iterator[list[Request]]:
    """Neighbours of equal settings, together at most ``at_once`` waveforms, and at least one request."""
    for wanted, group in itertools.groupby(requests, key=lambda request: replace(request, prompt="any", seed=None)):
        alike, size = list(group), 1 if wanted.sections else max(1, at_once // wanted.candidates)
        yield from (alike[first : first + size] for first in range(0, len(alike), size))


def _watch(progress, cancel: Cancel | None, where: Progress, counter: Iterator[int]) -> None:
    """Tell and ask before the first step (``counter`` at 0) and after each; a guard's further draws count from 1."""
    step = next(counter)
    if cancel is not None and (cancel.is_set() if isinstance(cancel, threading.Event) else cancel()):
        raise Cancelled(f"cancelled after step {step} of {where.steps}, of music {where.first} to {where.last}")
    if progress is not None and step > 0:
        progress(where._replace(step=(step - 1) % where.steps + 1))
