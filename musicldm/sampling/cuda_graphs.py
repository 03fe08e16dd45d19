"""Denoising steps as CUDA graphs: a step's thousand kernels launched as one.

    latents (B, C, T, F), time step, condition, guidance  -> fixed buffers -> replay ->  prediction (B, C, T, F)

A recording serves one shape, number format and choice of guidance; what changes from call to call (prompt, noise, time
step, strength of guidance) is copied into its buffers, so that nothing is recorded again for it. The first replay is
compared with the plain step on inputs that the recording did not see; where it deviates, the steps run plainly. What
could not be recorded is tried again in later runs, ever more rarely. Calls on several threads take turns, step by step.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from operator import getitem, is_
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from musicldm.sampling.condition import Condition, predict

MOST_RECORDINGS = 4  # each holds the memory of one step
WARM_UPS = 2  # libraries choose their algorithms, the attention kernel is loaded and checked

log = logging.getLogger(__name__)

Result = TypeVar("Result")  # tensors
Record = Callable[[Callable[[], Result]], tuple[Callable[[], object], Result]]


def record_graph(function: Callable[[], Result]) -> tuple[Callable[[], object], Result]:
    """What computes ``function`` again on the current device, into the tensors returned beside it.

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
    # A stream of this device, as torch's own for captures may be of another. Other threads may allocate meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = function()
    return graph.replay, result


def current(device: torch.device) -> AbstractContextManager:
    """Makes a CUDA ``device`` the current one, on which streams, events and graphs are made."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@dataclass
class Failure:
    """A step without a recording: how often one failed, and the run in which to try again (infinity: never)."""

    times: int
    next_run: float


class StepGraphs:
    """Recordings of `musicldm.sampling.predict` by shape, for one call at a time.

    Args:
        record: makes a recording; `record_graph` unless a test without CUDA puts another in its place.
    """

    def __init__(self, record: Record = record_graph):
        self.record = record
        self.recordings: dict[tuple, Recording | Failure] = {}
        self.watch: Watch | None = None
        self.runs = 0
        self.lock = threading.RLock()  # recordings have one set of buffers

    def of(self, unet: nn.Module) -> Callable[..., Tensor]:
        """What takes the place of ``predict`` for a run of ``unet`` as it is now."""
        problem = unsuited(unet)
        if problem is None:
            with self.lock:
                self.runs += 1
                if self.watch is None or not self.watch.same(unet):
                    watch = Watch(unet)
                    if self.watch is not None and watch.baked_in != self.watch.baked_in:
                        self.forget()
                    self.watch = watch
                problem = self.watch.problem
        if problem is not None:
            log.info("steps are not recorded as graphs: %s", problem)
            return predict
        return self.evaluate

    def serves(self, unet: nn.Module) -> bool:
        """Whether its recordings are of ``unet``."""
        return self.watch is not None and self.watch.unet is unet

    def forget(self) -> None:
        """Drop all recordings, when none is being replayed any more."""
        with self.lock:
            devices = {made.device for made in self.recordings.values() if isinstance(made, Recording)}
            for device in devices:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            self.recordings.clear()

    def evaluate(
        self,
        unet: nn.Module,
        noisy: Tensor,
        time: Tensor,
        condition: Condition,
        guidance_scale: float,
        context_guidance_scale: float = 1.0,
    ) -> Tensor:
        """As `predict`, replayed where that can be."""
        condition = condition.for_guidance(len(noisy), guidance_scale, context_guidance_scale)
        step = Step(noisy, time, condition, guidance_scale, context_guidance_scale)
        with self.lock:
            found = self.recordings.get(step.key)
            if found is None or (isinstance(found, Failure) and found.next_run <= self.runs):
                if found is None and len(self.recordings) >= MOST_RECORDINGS:
                    self.forget()
                failed = 0 if found is None else found.times
                found = self.recordings[step.key] = self.make(unet, step, failed)
            if isinstance(found, Recording):
                return found(*step)
        return predict(unet, *step)

    def make(self, unet: nn.Module, step: Step, failed: int = 0) -> Recording | Failure:
        """A recording that has shown on these inputs that it is right; or a failure, after ``failed`` others."""
        shape = tuple(step.noisy.shape)
        try:
            recording = Recording(unet, *step[:3], self.record)
        except RuntimeError as error:  # out of memory, for one, which may be over at the next run
            level = logging.INFO if failed else logging.WARNING
            log.log(level, "steps on latents of %s cannot be recorded and run plainly: %s", shape, error)
            return Failure(failed + 1, self.runs + 2**failed)
        exact = predict(unet, *step)
        deviation = ((recording(*step) - exact).norm() / exact.norm()).item()
        allowed = max(4 * torch.finfo(step.condition.embedding.dtype).eps, 1e-5)
        if not deviation <= allowed:  # not a number deviates too
            log.error(
                "a recorded step on latents of %s deviates by %.2g (rounding: %.2g); steps run plainly",
                shape,
                deviation,
                allowed,
            )
            return Failure(failed + 1, math.inf)
        log.info("recorded the step on latents of %s", shape)
        return recording


class Step(NamedTuple):
    """The arguments of `predict` but for the network."""

    noisy: Tensor  # (B, C, T, F)
    time: Tensor
    condition: Condition  # laid out for its guidance
    guidance_scale: float
    context_guidance_scale: float = 1.0

    @property
    def tensors(self) -> list[Tensor]:
        """What a recording has places for."""
        context = self.condition.context
        return [self.noisy, self.time, self.condition.embedding, *([] if context is None else [context])]

    @property
    def key(self) -> tuple:
        """Equal for steps that one recording serves."""
        options = tuple(sorted((self.condition.cross_attention_kwargs or {}).items()))
        return *((tuple(x.shape), x.dtype, x.device) for x in self.tensors), repr(options)


class Recording:
    """One step with fixed places for what goes in and comes out."""

    def __init__(self, unet: nn.Module, noisy: Tensor, time: Tensor, condition: Condition, record: Record):
        self.device = noisy.device
        self.done: torch.cuda.Event | None = None
        # Tensors made in inference mode could not be written to by calls outside of it.
        with current(self.device), torch.inference_mode(False), torch.no_grad():
            places = [torch.zeros_like(x) for x in Step(noisy, time, condition, 1.0).tensors]
            self.inputs = noisy, time, embedding, *context = places
            self.scales = [torch.zeros((), dtype=noisy.dtype, device=self.device) for _ in range(2)]
            condition = replace(condition, embedding=embedding, context=context[0] if context else None)
            self.replay, self.result = record(lambda: predict(unet, noisy, time, condition, *self.scales))

    def __call__(self, *arguments) -> Tensor:
        """The prediction for the ``arguments`` of a `Step`."""
        step = Step(*arguments)
        with current(self.device):
            if self.done is not None:  # of a call that may run on another stream
                self.done.wait()
            for place, x in zip(self.inputs, step.tensors, strict=True):
                place.copy_(x)
            for place, scale in zip(self.scales, step[3:], strict=True):
                place.fill_(scale)
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
    return None


class Watch:
    """What ``unet`` was when this was made, to see quickly whether it still is.

    Attributes:
        baked_in: a hash of what a recording has baked in: where the weights lie, and the plain settings of all modules.
        problem: why steps are not to be recorded; None if they may be.
    """

    def __init__(self, unet: nn.Module):
        self.unet, modules = unet, list(unet.modules())
        self.problem = None
        if any(hasattr(module, "_hf_hook") for module in modules):
            self.problem = "its weights are moved on and off the device"
        self.weights = [*unet.parameters(), *unet.buffers()]
        self.places = [x.data_ptr() for x in self.weights]
        settings = [
            (id(module), id(getattr(module, "processor", None)), name, value)
            for module in modules
            for name, value in vars(module).items()
            if isinstance(value, bool | int | float | str)
        ]
        self.baked_in = hash((tuple(self.places), tuple(settings)))
        skipped = vars(nn.Module()).keys() - {"training"}
        entries = [(vars(module), name) for module in modules for name in vars(module) if name not in skipped]
        self.holders = [holder for m in modules for holder in (vars(m), m._parameters, m._buffers, m._modules)]
        entries += [(holder, name) for i, holder in enumerate(self.holders) if i % 4 for name in holder]
        self.sizes = list(map(len, self.holders))
        self.entries = tuple(zip(*entries, strict=True))  # dictionaries, and names in them
        self.values = list(map(getitem, *self.entries))

    def same(self, unet: nn.Module) -> bool:
        """Whether ``unet`` is that UNet, all of whose modules, weights and attributes are the very same objects."""
        return (
            unet is self.unet
            and list(map(len, self.holders)) == self.sizes
            and all(map(is_, map(dict.get, *self.entries), self.values))
            and [x.data_ptr() for x in self.weights] == self.places
        )
