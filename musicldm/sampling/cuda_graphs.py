"""Denoising steps as CUDA graphs: a step's thousand kernels launched as one.

    latents (B, C, T, F), time step, embedding, guidance  -> fixed buffers -> replay ->  prediction (B, C, T, F)

A recording serves one shape, number format and choice of guidance; what changes from call to call (prompt, noise, time
step, strength of guidance) is copied into its buffers, so that nothing is recorded again for it. The first replay is
compared with the plain step on inputs that the recording did not see; where it deviates, the steps run plainly.
Calls on several threads take turns, step by step.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from musicldm.sampling.condition import Condition, predict

MOST_RECORDINGS = 4  # each holds the memory of one step
WARM_UPS = 2  # libraries choose their algorithms, the attention kernel is loaded and checked

log = logging.getLogger(__name__)

Result = TypeVar("Result")  # tensors
Record = Callable[[Callable[[], Result]], tuple[Callable[[], object], Result]]


def record_graph(function: Callable[[], Result]) -> tuple[Callable[[], object], Result]:
    """What computes ``function`` again, into the tensors returned beside it.

    Raises:
        RuntimeError: if it cannot be captured, as without CUDA.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other calls may allocate memory meanwhile
        result = function()
    return graph.replay, result


class StepGraphs:
    """Recordings of `musicldm.sampling.predict` by shape, for one call at a time.

    Args:
        record: makes a recording; `record_graph` unless a test without CUDA puts another in its place.
    """

    def __init__(self, record: Record = record_graph):
        self.record = record
        self.recordings: dict[tuple, Recording | None] = {}  # None: it deviated or could not be made
        self.baked_in: int | None = None
        self.lock = threading.RLock()  # recordings have one set of buffers

    def of(self, unet: nn.Module) -> Callable[..., Tensor]:
        """What takes the place of ``predict`` for a run of ``unet`` as it is now."""
        if problem := unsuited(unet):
            log.info("steps are not recorded as graphs: %s", problem)
            return predict
        with self.lock:
            if (baked_in := hash_of(unet)) != self.baked_in:
                self.forget()
                self.baked_in = baked_in
        return self.evaluate

    def forget(self) -> None:
        """Drop all recordings, when none is being replayed any more."""
        with self.lock:
            if self.recordings and torch.cuda.is_available():
                torch.cuda.synchronize()
            self.recordings.clear()

    def evaluate(
        self, unet: nn.Module, noisy: Tensor, time: Tensor, condition: Condition, guidance_scale: float
    ) -> Tensor:
        """As `predict`, replayed where that can be."""
        options = tuple(sorted((condition.cross_attention_kwargs or {}).items()))
        key = *((tuple(x.shape), x.dtype, x.device) for x in (noisy, time, condition.embedding)), repr(options)
        with self.lock:
            if key not in self.recordings:
                if len(self.recordings) >= MOST_RECORDINGS:
                    self.forget()
                self.recordings[key] = self.make(unet, noisy, time, condition, guidance_scale)
            if (recording := self.recordings[key]) is not None:
                return recording(noisy, time, condition, guidance_scale)
        return predict(unet, noisy, time, condition, guidance_scale)

    def make(
        self, unet: nn.Module, noisy: Tensor, time: Tensor, condition: Condition, guidance_scale: float
    ) -> Recording | None:
        """A recording that has shown on these inputs that it is right, or None, with a warning."""
        shape = tuple(noisy.shape)
        try:
            recording = Recording(unet, noisy, time, condition, self.record)
        except RuntimeError as error:
            log.warning("steps on latents of %s cannot be recorded and run plainly: %s", shape, error)
            return None
        exact = predict(unet, noisy, time, condition, guidance_scale)
        deviation = ((recording(noisy, time, condition, guidance_scale) - exact).norm() / exact.norm()).item()
        allowed = max(4 * torch.finfo(condition.embedding.dtype).eps, 1e-5)
        if not deviation <= allowed:  # not a number deviates too
            log.error(
                "a recorded step on latents of %s deviates by %.2g (rounding: %.2g); steps run plainly",
                shape,
                deviation,
                allowed,
            )
            return None
        log.info("recorded the step on latents of %s", shape)
        return recording


class Recording:
    """One step with fixed places for what goes in and comes out."""

    def __init__(self, unet: nn.Module, noisy: Tensor, time: Tensor, condition: Condition, record: Record):
        self.inputs = noisy, time, embedding = [torch.zeros_like(x) for x in (noisy, time, condition.embedding)]
        self.scale = torch.zeros((), dtype=noisy.dtype, device=noisy.device)
        condition = replace(condition, embedding=embedding)
        self.replay, self.result = record(lambda: predict(unet, noisy, time, condition, self.scale))
        self.done: torch.cuda.Event | None = None

    def __call__(self, noisy: Tensor, time: Tensor, condition: Condition, guidance_scale: float) -> Tensor:
        if self.done is not None:  # of a call that may run on another stream
            self.done.wait()
        for place, x in zip(self.inputs, (noisy, time, condition.embedding), strict=True):
            place.copy_(x)
        self.scale.fill_(guidance_scale)
        self.replay()
        result = self.result.clone()  # schedulers keep predictions while later ones are made
        if result.is_cuda:
            self.done = torch.cuda.current_stream().record_event()
        return result


def unsuited(unet: nn.Module) -> str | None:
    """Why steps of ``unet`` are not to be recorded now; None if they may be."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled(unet.device.type):
        return "gradients or autocast are on"
    if getattr(unet, "peft_config", None):
        return "it has adapters, whose strength may change (fuse_lora and unload_lora_weights end that)"
    if any(hasattr(module, "_hf_hook") for module in unet.modules()):
        return "its weights are moved on and off the device"
    return None


def hash_of(unet: nn.Module) -> int:
    """Of what a recording has baked in: where the weights lie, and the plain settings of all modules."""
    weights = tuple(x.data_ptr() for x in (*unet.parameters(), *unet.buffers()))
    settings = tuple(
        (id(module), id(getattr(module, "processor", None)), name, value)
        for module in unet.modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str)
    )
    return hash((weights, settings))
