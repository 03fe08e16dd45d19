"""Training as fast as a GPU can: clips in its memory, forward and backward pass as one CUDA graph.

Drawing items on a CPU, and launching a small network's kernels one by one, take longer than a GPU needs to run them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from musicldm.sampling.cuda_graphs import Record, current, record_graph
from musicldm.train.diffusion.latents import Example

LARGEST_DEVIATION = 0.05  # of a replayed gradient from a plain one, relative; bfloat16's rounding makes less
Gradient = Callable[[Example], dict[str, Tensor]]


def check_device(accelerator: Accelerator) -> None:
    """ValueError unless there is one process, on a device that `LatentsOnDevice` draws on."""
    n, kind = accelerator.num_processes, accelerator.device.type
    if n > 1 or kind not in ("cpu", "cuda"):
        raise ValueError(f"on_device=true is for one process on a CUDA device or a CPU, not {n} on {kind}")


class Recorded:
    """``gradient(example)`` in fixed places for what goes in and comes out, recorded at the first call.

    Args:
        gradient: returns losses and leaves their gradient in the parameters of ``module``; it neither waits for the GPU
            nor reads the CPU's memory. All examples have the first's shapes.
        record: makes the recording; another than `record_graph` in tests without CUDA.
    """

    def __init__(self, gradient: Gradient, module: nn.Module, record: Record = record_graph):
        self.gradient, self.record = gradient, record
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.places: Example | None = None

    def __call__(self, example: Example) -> dict[str, Tensor]:
        """Losses of ``example``; the parameters' gradient is that of it alone.

        Raises:
            RuntimeError: the passes cannot be recorded, or the first replay's gradient is not that of the plain ones.
        """
        if self.places is None:
            self._record(example)
        self._replay(example)
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            p.grad = gradient
        return {name: value.clone() for name, value in self.losses.items()}

    def _record(self, example: Example) -> None:
        self.places = type(example)(*(value.clone() for value in example))
        exact = torch.cat([gradient.flatten() for gradient in self._compute()[1]])
        for place in self.places:
            place.zero_()  # so that the first replay is of what the recording did not see
        try:
            with current(self.places[0].device):
                self.replay, (self.losses, self.gradients) = self.record(self._compute)
        except RuntimeError as error:
            raise RuntimeError(
                f"the passes cannot be recorded as a CUDA graph ({error}): set on_device=false"
            ) from error
        self._replay(example)
        deviation = (torch.cat([gradient.flatten() for gradient in self.gradients]) - exact).norm()
        if exact.isfinite().all() and not deviation <= LARGEST_DEVIATION * exact.norm():
            raise RuntimeError(
                f"a gradient replayed from a CUDA graph is {deviation:.2g} from the plain one, whose norm is "
                f"{exact.norm():.2g}: set on_device=false"
            )

    def _replay(self, example: Example) -> None:
        for place, value in zip(self.places, example, strict=True):
            place.copy_(value)
        self.replay()

    def _compute(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        for p in self.parameters:
            p.grad = None
        losses = self.gradient(self.places)
        return losses, [p.grad for p in self.parameters]
