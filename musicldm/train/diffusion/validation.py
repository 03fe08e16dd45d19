"""Losses on held-out clips at fixed times and noise; of a UNet that takes a context, for each way of giving one.

loss                                   of items that are given a context in the shares of the training
loss_without, loss_hole, loss_context  of all items without one, with a hole, with one that was made
loss_notes, loss_chords, ...           of those whose context has that kind in it
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from musicldm.data.items import Item
from musicldm.models.context import HOLE
from musicldm.train.diffusion.contexts import WITH_HOLE, WITH_MADE, WITHOUT
from musicldm.train.diffusion.latents import CachedLatents, ContextExample, Example, to_device
from musicldm.train.diffusion.objectives import Objective, Question

MOST_LOOKED_AT = 100  # items, for a context to be heard

Losses = Callable[[Example], dict[str, Tensor]]
Answer = Callable[[ContextExample], tuple[Tensor, Question]]  # prediction of a batch, and what was asked


def fixed_examples(dataset: CachedLatents, device: torch.device) -> Iterator[Example]:
    """The batches that all validations of a run share."""
    config = dataset.config
    for k in range(config.validation_batches):
        numbers = range(k * config.batch_size, (k + 1) * config.batch_size)
        drawn = [dataset[Item(*divmod(number, len(dataset)))] for number in numbers]
        yield to_device(torch.utils.data.default_collate(drawn), device)


class Means:
    """Means of losses by name, over items that come in groups."""

    def __init__(self):
        self.sums, self.counts = defaultdict(float), defaultdict(int)

    def add(self, name: str, loss: Tensor, count: int) -> None:
        """Count the mean ``loss`` of ``count`` items."""
        self.sums[name] += float(loss) * count
        self.counts[name] += count

    def __call__(self) -> dict[str, float]:
        return {name: self.sums[name] / count for name, count in self.counts.items()}


@torch.no_grad()
def plain_losses(
    losses: Losses, dataset: CachedLatents, objective: Objective, device: torch.device
) -> dict[str, float]:
    """``loss`` of held-out items and ``constant_loss``, that of always predicting 0."""
    means = Means()
    for example in fixed_examples(dataset, device):
        means.add("loss", losses(example)["loss"], len(example.latents))
        target = objective.question(example.latents, example.noise, example.timestep).target
        zero = objective.losses(torch.zeros_like(target), target, example.timestep)
        means.add("constant_loss", zero["loss"], len(target))
    return means()


@torch.no_grad()
def context_losses(
    answer: Answer, dataset: CachedLatents, objective: Objective, device: torch.device
) -> dict[str, float]:
    """The same of a dataset with contexts: ``loss`` by the shares of the training, and those of each kind."""
    means, kinds = Means(), dataset.contexts.layout.kinds
    for how in (WITHOUT, WITH_HOLE, WITH_MADE):
        for example in fixed_examples(dataset.all_given(how), device):
            predicted, asked = answer(example)
            rows_of = groups_of(example, how, kinds)
            if how == WITHOUT:
                zero = objective.losses(torch.zeros_like(predicted), asked.target, example.timestep)
                means.add("constant_loss", zero["loss"], len(predicted))
            for name, rows in rows_of.items():
                losses = objective.losses(predicted[rows], asked.target[rows], example.timestep[rows])
                means.add(f"loss_{name}", losses["loss"], len(rows))
    found, config = means(), dataset.config
    made = 1 - config.drop_context - config.hole_share if f"loss_{WITH_MADE}" in found else 0.0
    shares = {WITHOUT: 1 - config.hole_share - made, WITH_HOLE: config.hole_share, WITH_MADE: made}
    loss = sum(share * found[f"loss_{how}"] for how, share in shares.items() if share > 0)
    return {"loss": loss, **found}


def groups_of(example: ContextExample, how: str, kinds: tuple[str, ...]) -> dict[str, Tensor]:
    """The rows of a batch in which something is given, or is not for WITHOUT; and those of each kind of context."""
    n_latents = example.latents.shape[1]
    flags = example.context[:, n_latents + 1 :].flatten(2).any(dim=2)  # (B, K)
    groups = {how: flags.any(dim=1) != (how == WITHOUT)}
    if how == WITH_MADE:
        groups |= {kind: flags[:, k] for k, kind in enumerate(kinds) if kind != HOLE}
    rows = {name: which.nonzero()[:, 0] for name, which in groups.items()}
    return {name: row for name, row in rows.items() if len(row)}


class ShownContext(NamedTuple):
    """A context to be heard, and the condition beside it."""

    kinds: tuple[str, ...]
    latents: Tensor  # (1, C, T/f, F/f), unscaled
    embedding: Tensor  # (1, D)


def context_to_show(dataset: CachedLatents) -> ShownContext | None:
    """The first context of ``dataset`` that is given all the time, without a hole; None if there is none nearby."""
    if not dataset.contexts:
        return None
    made, known = dataset.all_given(WITH_MADE), dataset.contexts.layout.kinds
    for index in range(min(MOST_LOOKED_AT, len(dataset))):
        example = made[Item(0, index)]
        latents, flags = example.context.split([len(example.latents), 1 + len(known)])
        always, never = flags.flatten(1).all(dim=1), ~flags.flatten(1).any(dim=1)
        kinds = tuple(kind for kind, given in zip(known, always[1:], strict=True) if given)
        if kinds and HOLE not in kinds and (always | never).all():
            return ShownContext(kinds, latents[None], example.embedding[None])
    return None
