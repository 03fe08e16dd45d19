"""Objectives of diffusion training: noise, v or velocity to be predicted from noisy latents; weights; schedules.

    x0, noise (B, ...), timestep (B,) -> noisy (B, ...), what the network is asked for (B, ...)

Ho et al. (2020), https://arxiv.org/abs/2006.11239; Liu et al. (2023), rectified flow, https://arxiv.org/abs/2209.03003.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from musicldm.config import DiffusionConfig
from musicldm.sampling.condition import Condition, predict


def make_scheduler(
    config: DiffusionConfig, device: torch.device | None = None
) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    """The schedule that the model is trained on and saved with, its tables on ``device``.

    For noise and v, betas are squares of equally spaced numbers, and the last step goes to the first training step.
    """
    if config.prediction == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.train_timesteps)
    scheduler = DDIMScheduler(
        num_train_timesteps=config.train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="scaled_linear",
        prediction_type=config.prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.betas, scheduler.alphas_cumprod = (
        table.to(device) for table in (scheduler.betas, scheduler.alphas_cumprod)
    )
    return scheduler


def trained_settings(folder: Path) -> dict[str, str | int | float]:
    """Fields of `DiffusionConfig` in which the model was trained whose scheduler lies in ``folder``."""
    saved = DDIMScheduler.load_config(folder)
    settings = {"train_timesteps": saved["num_train_timesteps"]}
    if saved["_class_name"].startswith("FlowMatch"):
        return {"prediction": "flow"} | settings
    return (
        {"prediction": saved.get("prediction_type", "epsilon")}
        | settings
        | {name: saved[name] for name in ("beta_start", "beta_end") if name in saved}
    )


def add_noise(x0: Tensor, noise: Tensor, timestep: Tensor, alpha_bar: Tensor) -> Tensor:
    """Draw x_t given x_0: eq. 4 of Ho et al. (2020). x0, noise (B, ...); timestep (B,); alpha_bar (steps,)."""
    a = alpha_bar[timestep].view(-1, *[1] * (x0.ndim - 1))
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def prediction_target(x0: Tensor, noise: Tensor, timestep: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """What the network is asked for: the noise, or v (Salimans and Ho, 2022, https://arxiv.org/abs/2202.00512)."""
    if prediction == "epsilon":
        return noise
    a = alpha_bar[timestep].view(-1, *[1] * (x0.ndim - 1))
    return a.sqrt() * noise - (1 - a).sqrt() * x0


def variational_weights(betas: Tensor) -> Tensor:
    """Weights (steps,) of the variational bound: beta^2 / (2 posterior variance alpha (1 - cumulative alpha)).

    The first, where the posterior variance is 0, is set to the second.
    """
    betas = betas.double()
    alphas = 1 - betas
    alpha_bar = alphas.cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64, device=betas.device), alpha_bar[:-1]])
    variance = betas * (1 - before) / (1 - alpha_bar)
    weights = betas.square() / (2 * variance * alphas * (1 - alpha_bar))
    weights[0] = weights[1]
    return weights.float()


def min_snr_weights(alpha_bar: Tensor, limit: float, prediction: str) -> Tensor:
    """Weights (steps,) that count no step's error in x0 by more than ``limit``, whatever its signal-to-noise ratio.

    Hang et al. (2023), https://arxiv.org/abs/2303.09556: min(SNR, limit) / SNR for noise, and over SNR + 1 for v.
    """
    ratio = alpha_bar / (1 - alpha_bar)
    return ratio.clamp(max=limit) / (ratio if prediction == "epsilon" else ratio + 1)


@dataclass(frozen=True)
class Objective:
    """What a run asks of its network."""

    config: DiffusionConfig
    scheduler: DDIMScheduler | FlowMatchEulerDiscreteScheduler
    scaling_factor: float  # of latents
    former: nn.Module | None = None  # the UNet before the training, to whose answers without a context it is held

    def question(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Question:
        """`question` for unscaled ``latents``."""
        return question(self.scaling_factor * latents, noise, timestep, self.scheduler, self.config.prediction)

    def context(self, channels: Tensor, n_latents: int) -> Tensor:
        """The ``channels`` (B, C + 1 + K, T/f, F/f) of a context with its first ``n_latents``, C, unscaled, scaled."""
        latents, frames = channels.split([n_latents, channels.shape[1] - n_latents], dim=1)
        return torch.cat([self.scaling_factor * latents, frames], dim=1)

    @torch.no_grad()
    def held(self, asked: Question, condition: Condition) -> Tensor:
        """The target (B, ...) of ``asked``, moved towards what ``former`` answers for items without a context.

        All of it for ``context_keep`` 1. On a GPU, whose passes may be recorded, ``former`` is asked of all items.
        """
        assert self.former is not None
        assert condition.context is not None
        bare = ~condition.context.flatten(1).any(dim=1)  # (B,)
        rows = slice(None) if asked.noisy.is_cuda else bare
        if not (asked.noisy.is_cuda or bare.any()):
            return asked.target
        condition = replace(condition, embedding=condition.embedding[rows], context=condition.context[rows])
        answer = asked.target.clone()
        answer[rows] = predict(self.former, asked.noisy[rows], asked.time[rows], condition)
        bare = bare.view(-1, *[1] * (answer.ndim - 1))
        return torch.where(bare, torch.lerp(asked.target, answer, self.config.context_keep), asked.target)

    def losses(self, predicted: Tensor, target: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        """`weighted_losses` of ``predicted``."""
        return weighted_losses(predicted, target, timestep, self.scheduler, self.config)


class Question(NamedTuple):
    """What the network gets and what it should answer."""

    noisy: Tensor  # (B, ...)
    time: Tensor  # (B,)
    target: Tensor  # (B, ...)


def question(x0: Tensor, noise: Tensor, timestep: Tensor, scheduler, prediction: str) -> Question:
    """For ``prediction`` epsilon, v_prediction or flow; ``timestep (B,)`` counts from 0.

    Flow: on the straight line from music to noise, sigma = (timestep + 1) / steps of the way, the velocity noise - x0.
    """
    if prediction == "flow":
        time = timestep + 1
        sigma = (time / scheduler.config.num_train_timesteps).view(-1, *[1] * (x0.ndim - 1)).to(x0.dtype)
        return Question((1 - sigma) * x0 + sigma * noise, time, noise - x0)
    alpha_bar = scheduler.alphas_cumprod.to(x0.device)
    noisy = add_noise(x0, noise, timestep, alpha_bar)
    return Question(noisy, timestep, prediction_target(x0, noise, timestep, alpha_bar, prediction))


def diffusion_losses(predicted: Tensor, target: Tensor, timestep: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """``loss``: squared error averaged per item, then over the batch; ``variational``: the same weighted, to log."""
    per_item = (predicted - target).square().flatten(1).mean(dim=1)  # (B,)
    return {"loss": per_item.mean(), "variational": (weights[timestep] * per_item).mean()}


def weighted_losses(
    predicted: Tensor, target: Tensor, timestep: Tensor, scheduler, config: DiffusionConfig
) -> dict[str, Tensor]:
    """`diffusion_losses` with the configuration's weighting; for a flow there is no variational bound to log."""
    if config.prediction == "flow":
        return {"loss": (predicted - target).square().mean()}
    losses = diffusion_losses(predicted, target, timestep, variational_weights(scheduler.betas).to(target.device))
    if config.min_snr:
        alpha_bar = scheduler.alphas_cumprod.to(target.device)
        weights = min_snr_weights(alpha_bar, config.min_snr, config.prediction)[timestep]  # (B,)
        losses["unweighted"] = losses["loss"].detach()
        losses["loss"] = (weights * (predicted - target).square().flatten(1).mean(dim=1)).mean()
    return losses


def text_share(config: DiffusionConfig, epoch: int, n_epochs: int) -> float:
    """Share of items of ``epoch`` (counted from 0) whose condition is a caption."""
    if config.text_condition_last is None:
        return config.text_condition
    progress = min(1.0, epoch / max(1, n_epochs - 1))
    return config.text_condition + progress * (config.text_condition_last - config.text_condition)
