"""What belongs to one call of a pipeline: a copy of it, and the functions that are told of its steps."""

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from musicldm.config.values import check_kind, check_number, check_whole, shown
from musicldm.sampling.condition import Condition
from musicldm.sampling.denoising import Guidance, OnStep

OFFLOADED = threading.RLock()  # held by a call whose parts move between devices


@contextmanager
def taking_turns(pipeline: DiffusionPipeline) -> Iterator[None]:
    """While inside, no other thread uses a pipeline whose parts are moved on and off the device as they are needed."""
    parts = pipeline.components.values()
    if any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in parts):
        with OFFLOADED:
            yield
    else:
        yield


def independent(call: Callable) -> Callable:
    """A pipeline's ``__call__`` that runs on a copy of the pipeline, which has the same parts and its own scheduler.

    So any number of calls, on any threads or within callbacks, do not notice one another, and none changes the
    pipeline, except that its ``last_run`` tells of the call that ended last. Callbacks are given the copy:
    ``pipe._interrupt = True`` ends that call alone.
    """

    @functools.wraps(call)
    def run(self, *args, **options):
        own = copy.copy(self)
        own.scheduler, own._interrupt = copy.deepcopy(self.scheduler), False
        with taking_turns(own):
            returned = call(own, *args, **options)
        self.last_run.guidance_scale, self.last_run.num_timesteps = own.guidance_scale, own.num_timesteps
        return returned

    return run


@dataclass(frozen=True)
class Callbacks:
    """Functions of a call that are told of its steps; see `MusicLDMPipeline.__call__`."""

    on_step_end: Callable | None = None
    tensor_inputs: tuple[str, ...] | list[str] = ("latents",)
    callback: Callable[[int, int, Tensor], None] | None = None
    every: int = 1  # steps between two calls of ``callback``

    @classmethod
    def of(cls, on_step_end: Any, tensor_inputs: Any, callback: Any, every: Any) -> "Callbacks":
        """A diffusers ``PipelineCallback`` says itself which tensors it takes."""
        return cls(on_step_end, getattr(on_step_end, "tensor_inputs", tensor_inputs), callback, every)

    def check(self, known: list[str]) -> None:
        """ValueError unless they can be called, and given all tensors that they want of those ``known``."""
        for name, function in (("callback_on_step_end", self.on_step_end), ("callback", self.callback)):
            if function is not None and not callable(function):
                raise ValueError(f"{name} must be a function, got {shown(function)}")
        check_whole("callback_steps", self.every)
        wanted = self.tensor_inputs
        check_kind("callback_on_step_end_tensor_inputs", wanted, (list, tuple), "a list of names")
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(f"callback_on_step_end_tensor_inputs can be of {', '.join(known)}, got {shown(unknown)}")

    def reporter(self, pipeline, guidance: Guidance, progress_bar, n_warm_up: int) -> OnStep:
        """What tells them and the progress bar of each step of ``pipeline``, the call's copy; one may end the run.

        They may also change tensors, and the pipeline's guidance scale, which becomes that of ``guidance``.
        ``n_warm_up``: evaluations of the network before the first step is complete.
        """
        order, n_evaluations = pipeline.scheduler.order, pipeline.num_timesteps

        def on_step(i: int, t: Tensor, latents: Tensor, condition: Condition) -> tuple[Tensor, Condition] | None:
            if self.on_step_end is not None:
                tensors = {"latents": latents, "prompt_embeds": condition.embedding}
                shown_tensors = {name: tensors[name] for name in self.tensor_inputs}
                returned = self.on_step_end(pipeline, i, t, shown_tensors)
                latents, embedding = _changed(tensors, returned)
                condition = replace(condition, embedding=embedding)
                condition = _guided(condition, len(latents), guidance, pipeline.guidance_scale)
            # a scheduler of order 2 visits most noise levels twice, one visit alone is no step
            if i + 1 == n_evaluations or (i + 1 > n_warm_up and (i + 1) % order == 0):
                progress_bar.update()
                step = i // order
                if self.callback is not None and step % self.every == 0:
                    self.callback(step, t, latents)
            return None if pipeline._interrupt else (latents, condition)

        return on_step


def _changed(tensors: dict[str, Tensor], returned: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Latents and embedding to go on with, of what a callback ``returned``; it may return only the last rows.

    Raises:
        ValueError: for other shapes, or something else than tensors.
    """
    check_kind("what callback_on_step_end returns", returned, (dict, type(None)), "a dictionary of tensors, or None")
    latents, embedding = tensors["latents"], tensors["prompt_embeds"]
    size, changed = embedding.shape[1], tensors | (returned or {})
    for name in tensors:
        check_kind(f"{name} of callback_on_step_end", changed[name], Tensor, "a tensor")
    if changed["latents"].shape != latents.shape:
        shapes = f"{tuple(changed['latents'].shape)} for {tuple(latents.shape)}"
        raise ValueError(f"callback_on_step_end returned latents of shape {shapes}; keep the shape")
    rows, n_items = changed["prompt_embeds"], len(latents)
    if rows.shape == (1, size) and n_items > 1 and torch.equal(rows, embedding[-1:]):
        rows = embedding[-n_items:]  # diffusers' callbacks take the last row for all conditional ones
    if rows.ndim != 2 or rows.shape[1] != size or len(rows) not in {n_items, len(embedding)}:
        shapes = f"{tuple(rows.shape)} for {tuple(embedding.shape)}"
        raise ValueError(f"callback_on_step_end returned prompt_embeds of shape {shapes}; keep it, or the last rows")
    return changed["latents"], rows


def _guided(condition: Condition, n_items: int, guidance: Guidance, scale: float) -> Condition:
    """``condition`` for the guidance ``scale`` that callbacks have set by now."""
    if scale != guidance.scale:
        check_number("guidance_scale", scale)
        if scale > 1 and len(condition.embedding) == n_items:
            raise ValueError(
                f"guidance_scale cannot become {scale} in a run without guidance; begin it with more than 1"
            )
        guidance.scale = max(scale, 1.0)
    guided = scale > 1 or (condition.context is not None and guidance.context_scale != 1)
    return condition if guided else condition.rows(n_items)
