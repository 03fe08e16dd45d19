"""The UNet's input channels for contexts: added where they are missing, and trained at a rate of their own."""

from __future__ import annotations

import copy

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from musicldm.config import DiffusionConfig
from musicldm.kernels.unet_attention import install
from musicldm.models import context
from musicldm.train.common import make_optimizer


def ready_for_contexts(unet: UNet2DConditionModel, config: DiffusionConfig) -> None:
    """Add the input channels for contexts to ``unet``, in place, unless it has them; ValueError as `unet_for`."""
    if layout := context.context_layout(unet):
        layout.check(context.KINDS)
    elif config.lora.rank:
        raise ValueError(
            f"{config.init} has no input channels for a context, which an adapter cannot add: train a whole model with "
            "context=true first, or set context=false"
        )
    else:
        context.add_context(unet)


def unet_optimizer(unet: nn.Module, config: DiffusionConfig) -> torch.optim.AdamW:
    """`make_optimizer`, with a learning rate of its own for the first layer if the configuration has one."""
    optimizer = make_optimizer(unet, config)
    if config.context_learning_rate:
        first = [p for p in unet.conv_in.parameters() if p.requires_grad]
        rest = {id(p) for p in first}
        group = optimizer.param_groups[0]
        group["params"] = [p for p in group["params"] if id(p) not in rest]
        optimizer.add_param_group({"params": first, "scale": config.context_learning_rate / config.learning_rate})
    return optimizer


def frozen_copy(unet: nn.Module) -> nn.Module:
    """``unet`` as it is now, which nothing changes later."""
    install(former := copy.deepcopy(unet).eval().requires_grad_(False))
    return former
