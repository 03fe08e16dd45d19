"""NaN and infinity: which part of a pipeline made them first, and where to look."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def check_finite(values: Tensor, name: str, network: nn.Module) -> None:
    """ValueError if ``values`` that the pipeline's part ``name`` computed of numbers hold NaN or infinity."""
    if not torch.isfinite(values).all():
        raise ValueError(f"NaN or infinity: the {name} made them of numbers; {where_to_look(network)}")


def where_to_look(network: nn.Module) -> str:
    """What may be wrong with a network that makes NaN or infinity, and the way out."""
    for name, weight in network.named_parameters():
        if not torch.isfinite(weight).all():
            return f"its weights hold some, as in {name}: load or train that model or adapter again"
    dtype = next(network.parameters()).dtype
    if dtype == torch.float16:
        return "its weights are numbers, so float16 is too narrow for it: load it in torch.float32 or torch.bfloat16"
    return f"its weights are numbers ({dtype}), so look at what it was given: very large embeddings, latents, guidance"


class Watched:
    """What takes the place of `musicldm.sampling.predict` and notes, without waiting for a GPU, what was finite."""

    def __init__(self, evaluate: Callable[..., Tensor]):
        self.evaluate = evaluate
        self.finite: list[Tensor] = []  # whether each step's input and prediction were, in turn

    def __call__(self, unet: nn.Module, noisy: Tensor, *arguments) -> Tensor:
        prediction = self.evaluate(unet, noisy, *arguments)
        self.finite += [torch.isfinite(noisy).all(), torch.isfinite(prediction).all()]
        return prediction

    def check(self, latents: Tensor, unet: nn.Module, sampler: str, others: list[str]) -> None:
        """ValueError if ``latents`` at the end of a run are not finite; ``others`` are functions that changed some."""
        if torch.isfinite(latents).all():
            return
        finite = torch.stack(self.finite).tolist()
        first = finite.index(False) if False in finite else len(finite)
        step = f"in step {first // 2 + 1}" if first < len(finite) else "in the last step"
        if first % 2:
            raise ValueError(f"NaN or infinity: the unet made them of numbers {step}; {where_to_look(unet)}")
        raise ValueError(
            f"NaN or infinity {step}: the unet's predictions were numbers, what {' or '.join([sampler, *others])} made "
            "of them were not; take another scheduler, other steps or less guidance"
        )
