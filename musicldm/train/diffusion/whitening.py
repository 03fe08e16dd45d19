"""How a UNet first hears its condition: CLAP's unit vectors spread out evenly.

    embedding (B, D) -> W (embedding - mean), the components of unit variance and uncorrelated -> (B, E) -> UNet

A trained CLAP varies mostly in a few directions around a common mean: of the towers that the bundled model first had,
five of 256 held nine tenths of the variance; a linear classifier told the family of instruments of 78 % of captions by
six directions, of 95 % by a hundred and fifty. A freshly drawn projection passes these on as they are, and whatever
the others say stays too faint to be learned within a run. The projection is a layer of the UNet: what is saved is an
ordinary one. Whitening: Kessy et al. (2018), https://arxiv.org/abs/1512.00809; first weights from data: Mishkin and
Matas (2016), https://arxiv.org/abs/1511.06422.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from torch.nn import functional

from musicldm.config import DiffusionConfig
from musicldm.models.clap import embed_text
from musicldm.train.common import initial_folder
from musicldm.train.diffusion.cache import Cache, Conditioner, fingerprint, load_conditioner

SHRINKAGE = 1e-3  # of the mean variance of a direction: those far below it are noise of the towers, and stay faint
MOST_ROWS = 20_000  # of either kind, spread evenly over the collection: enough for a covariance of some hundred numbers


@torch.no_grad()
def empty_embedding(conditioner: Conditioner) -> Tensor:
    """What stands for no condition: the embedding (D,) of the empty text."""
    return embed_text(conditioner.clap, conditioner.tokenizer, [""])[0]


def former_clap(config: DiffusionConfig, conditioner: Conditioner) -> Conditioner | None:
    """The CLAP that the UNet of ``config.init`` was trained with, if ``conditioner``'s embeds audio in another way.

    One whose text tower alone was trained on (``freeze_audio``) speaks of the same space, and the UNet goes on.

    Raises:
        ValueError: an adapter, or a concept, is to be trained with another CLAP than its model's.
    """
    if not (config.init and config.clap and initial_folder(config, "text_encoder").name == "text_encoder"):
        return None
    former = load_conditioner(initial_folder(config))

    def same(*parts: str) -> bool:
        before, now = ([getattr(some.clap, part) for part in parts] for some in (former, conditioner))
        return fingerprint([], config.mel, *before) == fingerprint([], config.mel, *now)

    audio, text = ("audio_model", "audio_projection"), ("text_model", "text_projection")
    if config.lora.rank and not same(*audio, *text):
        raise ValueError(f"an adapter of {config.init} goes with its own CLAP; leave out clap={config.clap}")
    return None if same(*audio) else former


def prepare_condition(
    unet: UNet2DConditionModel, conditioner: Conditioner, cache: Cache, indices: list[int], config: DiffusionConfig
) -> None:
    """Ready a UNet that has not been conditioned by ``conditioner`` before for the conditions of clips ``indices``.

    Raises:
        ValueError: that of `former_clap`.
    """
    former = former_clap(config, conditioner)
    if former:
        forget_condition(unet, empty_embedding(former))
    if (former or not config.init) and config.whiten_condition:
        empty = empty_embedding(conditioner).cpu().numpy()
        fit_condition(unet, *condition_moments(cache, indices, empty, config), config.seed)


def condition_moments(
    cache: Cache, indices: list[int], empty: np.ndarray, config: DiffusionConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D) of the conditions that training on clips ``indices`` draws.

    ``empty (D,)`` is the embedding that dropped conditions are replaced by.
    """
    last = config.text_condition if config.text_condition_last is None else config.text_condition_last
    by_text = (config.text_condition + last) / 2
    texts = [row for i in indices for row in range(*cache.offsets[i : i + 2])]
    if not texts:
        by_text = 0.0
    groups = [  # share of all draws, rows
        (config.drop_condition, empty[None]),
        ((1 - config.drop_condition) * (1 - by_text), cache.audio[_spread(indices)]),
        ((1 - config.drop_condition) * by_text, cache.text[_spread(texts)]),
    ]
    groups = [(share, rows.astype(np.float64)) for share, rows in groups if share > 0]
    mean = sum(share * rows.mean(axis=0) for share, rows in groups)
    covariance = sum(share * (rows - mean).T @ (rows - mean) / len(rows) for share, rows in groups)
    return mean, covariance


def _spread(rows: list[int]) -> list[int]:
    """At most `MOST_ROWS` of ``rows``, evenly spread."""
    return [rows[k * len(rows) // MOST_ROWS] for k in range(MOST_ROWS)] if len(rows) > MOST_ROWS else rows


@torch.no_grad()
def fit_condition(unet: UNet2DConditionModel, mean: np.ndarray, covariance: np.ndarray, seed: int) -> None:
    """Set the projection of the UNet's condition to whiten vectors of this mean (D,) and covariance (D, D).

    Its outputs (E) are a random rotation of the uncorrelated components, on average of unit variance. Where D > E, they
    are E random combinations of them.
    """
    layer = unet.class_embedding
    variances, directions = np.linalg.eigh(covariance)  # (D,), (D, D) by columns
    variances = variances.clip(min=0)
    shrunk = variances + SHRINKAGE * variances.mean()
    rotation = torch.empty(layer.weight.shape, dtype=torch.float64)  # (E, D)
    torch.nn.init.orthogonal_(rotation, generator=torch.Generator().manual_seed(seed))
    whiten = rotation.numpy() @ (directions / np.sqrt(shrunk)).T
    whiten /= np.sqrt(np.mean(((whiten @ directions) ** 2) @ variances))
    # Rounded as autocast will: rows are long, and with other weights bfloat16 would hear another condition.
    weight = torch.from_numpy(whiten).bfloat16()
    layer.weight.copy_(weight)
    layer.bias.copy_((-weight.double() @ torch.from_numpy(mean)).bfloat16())


@torch.no_grad()
def forget_condition(unet: UNet2DConditionModel, empty: Tensor) -> None:
    """Make the UNet deaf to its condition: whatever comes, it does what it did for ``empty (D,)``, the empty text.

    What a UNet knows of music serves another CLAP too; its condition is then to be learned anew (`fit_condition`).
    """
    heard = functional.silu(unet.class_embedding(empty))  # (E,)
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D):
            weight = block.time_emb_proj.weight  # (C, 2 E): of the time's embedding, of the condition's
            condition = weight[:, -len(heard) :]
            block.time_emb_proj.bias += condition @ heard
            condition.zero_()
