"""What a UNet is conditioned on, and the one call of it.

    noisy latents (B, C, T, F), time, condition  -> UNet ->  noise, v or velocity (B, C, T, F)

Ho and Salimans (2022), classifier-free guidance, https://arxiv.org/abs/2207.12598
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Condition:
    """A condition for B items."""

    embedding: Tensor  # (B, D), or for guidance (2B, D) with the unconditional rows first
    cross_attention_kwargs: dict[str, Any] | None = None  # for the UNet's attention processors

    def rows(self, n_items: int) -> Condition:
        """The condition of the last ``n_items`` rows alone: without guidance."""
        return Condition(self.embedding[-n_items:], self.cross_attention_kwargs)


def predict(
    unet: nn.Module, noisy: Tensor, time: Tensor, condition: Condition, guidance_scale: float | Tensor = 1.0
) -> Tensor:
    """The UNet's prediction for scaled ``noisy`` latents, of their shape and dtype; guided if there are 2B rows.

    ``time`` is one number for all, or one for each item. The embedding has the UNet's dtype, ``noisy`` may be more
    precise. Eq. 6 of Ho and Salimans with scale = 1 + w.
    """
    embedding = condition.embedding
    copies = len(embedding) // len(noisy)
    prediction = unet(
        torch.cat([noisy] * copies).to(embedding.dtype),
        time.repeat(copies) if time.ndim else time,
        encoder_hidden_states=None,
        class_labels=embedding,
        cross_attention_kwargs=condition.cross_attention_kwargs,
        return_dict=False,
    )[0].to(noisy.dtype)
    if copies == 1:
        return prediction
    unconditional, conditional = prediction.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
