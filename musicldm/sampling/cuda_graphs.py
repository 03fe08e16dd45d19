"""Denoising steps as CUDA graphs: a step's thousand kernels launched as one.

    latents (B, C, T, F), time step, embedding, guidance  -> fixed buffers -> replay ->  prediction (B, C, T, F)

A recording serves one shape, number format and choice of guidance; what changes from call to call (prompt, noise, time
step, strength of guidance) is copied into its buffers, so that nothing is recorded again for it. The first replay is
compared with the plain step on inputs that the recording did not see; where it deviates, the steps run plainly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from musicldm.sampling.denoising import predict

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
    with torch.cuda.graph(graph):
        result = function()
    return graph.replay, result


class StepGraphs:
    """Recordings of `musicldm.sampling.denoising.predict` by shape.

    Args:
        record: makes a recording; `record_graph` unless a test without CUDA puts another in its place.
    """

    def __init__(self, record: Record = record_graph):
        self.record = record
        self.recordings: dict[tuple, Recording | None] = {}  # None: it deviated or could not be made
        self.baked_in: int | None = None

    def of(self, unet: nn.Module) -> Callable[..., Tensor]:
        """What takes the place of ``predict`` for a run of ``unet`` as it is now."""
        if problem := unsuited(unet):
            log.info("steps are not recorded as graphs: %s", problem)
            return predict
        if (baked_in := hash_of(unet)) != self.baked_in:
            self.forget()
            self.baked_in = baked_in
        return self.evaluate

    def forget(self) -> None:
        """Drop all recordings, when none is being replayed any more."""
        if self.recordings and torch.cuda.is_available():
            torch.cuda.synchronize()
        self.recordings.clear()

    def evaluate(
        self,
        unet: nn.Module,
        latents: Tensor,
        t: Tensor,
        embedding: Tensor,
        guidance_scale: float,
        cross_attention_kwargs: dict | None = None,
    ) -> Tensor:
        """As `predict`, replayed where that can be."""
        inputs = latents, t, embedding
        options = tuple(sorted((cross_attention_kwargs or {}).items()))
        key = *((tuple(x.shape), x.dtype, x.device) for x in inputs), repr(options)
        if key not in self.recordings:
            if len(self.recordings) >= MOST_RECORDINGS:
                self.forget()
            self.recordings[key] = self.make(unet, inputs, guidance_scale, cross_attention_kwargs)
        recording = self.recordings[key]
        if recording is None:
            return predict(unet, *inputs, guidance_scale, cross_attention_kwargs)
        return recording(inputs, guidance_scale)

    def make(self, unet: nn.Module, inputs: tuple[Tensor, ...], guidance_scale: float, options) -> Recording | None:
        """A recording that has shown on ``inputs`` that it is right, or None, with a warning."""
        shape = tuple(inputs[0].shape)
        try:
            recording = Recording(unet, inputs, options, self.record)
        except RuntimeError as error:
            log.warning("steps on latents of %s cannot be recorded and run plainly: %s", shape, error)
            return None
        exact = predict(unet, *inputs, guidance_scale, options)
        deviation = ((recording(inputs, guidance_scale) - exact).norm() / exact.norm()).item()
        allowed = max(4 * torch.finfo(inputs[2].dtype).eps, 1e-5)
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

    def __init__(self, unet: nn.Module, inputs: tuple[Tensor, ...], options: dict | None, record: Record):
        self.inputs = [torch.zeros_like(x) for x in inputs]
        self.scale = torch.zeros((), dtype=inputs[0].dtype, device=inputs[0].device)
        self.replay, self.result = record(lambda: predict(unet, *self.inputs, self.scale, options))

    def __call__(self, inputs: tuple[Tensor, ...], guidance_scale: float) -> Tensor:
        for place, x in zip(self.inputs, inputs, strict=True):
            place.copy_(x)
        self.scale.fill_(guidance_scale)
        self.replay()
        return self.result.clone()  # schedulers keep predictions while later ones are made


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
