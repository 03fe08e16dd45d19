"""What a UNet is conditioned on, and the one call of it.

    noisy latents (B, C, T, F), time, condition  -> UNet ->  noise, v or velocity (B, C, T, F)

With a context (`musicldm.models.context`) the text and the context each have a scale of guidance, g and c:

    (1 - c) e(nothing) + (c - g) e(context) + g e(text, context)

Only those of the three evaluations are made whose weight is not zero: two for c = 1 or c = g, one for c = g = 1.

Ho and Salimans (2022), classifier-free guidance, https://arxiv.org/abs/2207.12598; Brooks et al. (2023), of two
conditions, https://arxiv.org/abs/2211.09800
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from musicldm.models.context import NO_CONTEXT, context_layout


@dataclass(frozen=True)
class Condition:
    """A condition for B items.

    Attributes:
        embedding: (B, D), or for guidance (2B, D) with the unconditional rows first; or as `for_guidance` lays it out.
        cross_attention_kwargs: for the UNet's attention processors.
        context: channels of a context (B, C + 1 + K, T, F), or with the rows of the embedding; None for none.
    """

    embedding: Tensor
    cross_attention_kwargs: dict[str, Any] | None = None
    context: Tensor | None = None

    def rows(self, n_items: int) -> Condition:
        """The condition of the last ``n_items`` rows alone: without guidance."""
        context = None if self.context is None else self.context[-n_items:]
        return replace(self, embedding=self.embedding[-n_items:], context=context)

    def for_guidance(self, n_items: int, guidance_scale: float, context_guidance_scale: float = 1.0) -> Condition:
        """With one row of embedding and context for each item and evaluation that these scales of guidance need.

        ``n_items`` B. The evaluations come in the order nothing, context alone, text and context. What has no context,
        no unconditional rows, or such rows already, stays as it is.
        """
        if self.context is None or len(self.context) == len(self.embedding):
            return self
        nothing, text = self.embedding.split(n_items)
        evaluations = [(text, self.context)]
        if context_guidance_scale != guidance_scale:
            evaluations.insert(0, (nothing, self.context))
        if context_guidance_scale != 1:
            evaluations.insert(0, (nothing, torch.zeros_like(self.context)))
        embeddings, contexts = zip(*evaluations, strict=True)
        return replace(self, embedding=torch.cat(embeddings), context=torch.cat(contexts))


def predict(
    unet: nn.Module,
    noisy: Tensor,
    time: Tensor,
    condition: Condition,
    guidance_scale: float | Tensor = 1.0,
    context_guidance_scale: float | Tensor = 1.0,
) -> Tensor:
    """The UNet's prediction for scaled ``noisy`` latents, of their shape and dtype; guided if there are 2B rows.

    ``time`` is one number for all, or one for each item. The embedding has the UNet's dtype, ``noisy`` may be more
    precise. Without a context eq. 6 of Ho and Salimans with scale = 1 + w. Scales may be tensors where the condition is
    laid out for them already. A UNet that takes a context is given zeros where there is none.
    """
    condition = condition.for_guidance(len(noisy), guidance_scale, context_guidance_scale)
    embedding = condition.embedding
    copies = len(embedding) // len(noisy)
    prediction = unet(
        _with_context(unet, torch.cat([noisy] * copies).to(embedding.dtype), condition.context),
        time.repeat(copies) if time.ndim else time,
        encoder_hidden_states=None,
        class_labels=embedding,
        cross_attention_kwargs=condition.cross_attention_kwargs,
        return_dict=False,
    )[0].to(noisy.dtype)
    if copies == 1:
        return prediction
    if copies == 2:
        without, full = prediction.chunk(2)
        return without + guidance_scale * (full - without)
    nothing, of_context, full = prediction.chunk(3)
    return nothing + context_guidance_scale * (of_context - nothing) + guidance_scale * (full - of_context)


def _with_context(unet: nn.Module, noisy: Tensor, context: Tensor | None) -> Tensor:
    """What ``unet`` is given: ``noisy`` latents, and beside them the channels of a ``context`` if it takes one.

    Raises:
        ValueError: for a context that the UNet does not take.
    """
    plain = getattr(unet, "module", unet)  # without what spreads it over processes
    layout = context_layout(plain) if hasattr(plain, "config") else None  # networks in other wrappers have none
    if layout is None:
        if context is None:
            return noisy
        if hasattr(plain, "config"):
            raise ValueError(NO_CONTEXT)
        return torch.cat([noisy, context.to(noisy)], dim=1)
    if context is None:
        context = noisy.new_zeros(len(noisy), layout.channels, *noisy.shape[2:])
    expected = (len(noisy), layout.channels, *noisy.shape[2:])
    if context.shape != expected:
        raise ValueError(f"the context of these latents must be {expected}, got {tuple(context.shape)}")
    return torch.cat([noisy, context.to(noisy)], dim=1)
