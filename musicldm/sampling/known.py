"""What is known while latents are denoised: how noisy they are at each evaluation, and parts of them that are kept.

    scheduler, evaluation        -> `noise_level` -> latents = signal * x0 + noise * normal noise
    x0, mask, noises (1 = kept)  -> `Keeper`      -> the state before, or the prediction after, each evaluation

Two ways to keep a part. With noises, one for each evaluation, the kept part of the state is replaced by the noised
source before each evaluation: Lugmayr et al. (2022), RePaint, https://arxiv.org/abs/2201.09865, without its rounds, as
the authors of MusicLDM sample. Without, the prediction is changed so that its estimate of x0 is the known one: every
sampler, also one that remembers earlier predictions, then takes the kept part straight to it, from its first noise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from musicldm.config.values import check_kind, shown

CUT = (
    "sigmas",
    "sigmas_interpol",
    "sigmas_up",
    "sigmas_down",
    "order_list",
)  # schedulers have one entry a step in them
PREDICTIONS = ("epsilon", "v_prediction", "flow_prediction")


class NoiseLevel(NamedTuple):
    """State = signal * x0 + noise * normal noise; the network is given ``scale`` times the state."""

    signal: float
    noise: float
    scale: float = 1.0


class Known(NamedTuple):
    """A part of latents (B, C, T, F) that is kept.

    x0: clean latents (B, C, T, F), of which the kept part counts.
    mask: 1 where they are kept, 0 where they are new; of a shape that broadcasts to theirs.
    noises: (N, B, C, T, F), one for each of N evaluations of the network: the state is replaced. None: the prediction.
    """

    x0: Tensor
    mask: Tensor
    noises: Tensor | None = None

    def keep(self, latents: Tensor) -> Tensor:
        """``latents (B, C, T, F)`` whose kept part is ``x0``."""
        kept = self.mask.to(latents)
        return kept * self.x0.to(latents) + (1 - kept) * latents


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Whether latents are on a straight line between x0 and noise: a rectified flow."""
    return not hasattr(scheduler, "alphas_cumprod") or bool(scheduler.config.get("use_flow_sigmas", False))


def noise_level(scheduler: SchedulerMixin, t: Tensor, index: int) -> NoiseLevel:
    """How noisy the state is that a prepared ``scheduler`` expects at its evaluation ``index``, at time ``t``.

    Between the two evaluations of a sampler of second order it is that of the state in between. Call it before
    ``scheduler.step`` of that evaluation.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:  # these look it up in a table by the time
        alpha_bar = float(scheduler.alphas_cumprod[int(t)])
        return NoiseLevel(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))
    scale = 1.0
    if hasattr(scheduler, "scale_model_input"):
        scale = float(scheduler.scale_model_input(torch.ones((), dtype=torch.float64), t))
    if scale != 1.0:  # the state is x0 + sigma * noise, the network's input of power 1
        return NoiseLevel(1.0, math.sqrt(1 / scale**2 - 1), scale)
    sigma = float(sigmas[index])
    if is_flow(scheduler):
        return NoiseLevel(1 - sigma, sigma)
    return NoiseLevel(1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma))


def add_noise(x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """The state of that level, of ``x0`` and normal ``noise`` (B, C, T, F)."""
    return level.signal * x0 + level.noise * noise


def imposed(prediction: Tensor, model_input: Tensor, x0: Tensor, level: NoiseLevel, kind: str) -> Tensor:
    """What the network would have predicted of ``model_input`` if it knew ``x0``; all (B, C, T, F).

    ``kind`` is what it predicts: epsilon, v_prediction or flow_prediction (the velocity, noise less x0).
    """
    signal, noise = level.scale * level.signal, level.scale * level.noise
    if kind == "epsilon":
        return (model_input - signal * x0) / noise
    if kind == "v_prediction":
        return (signal * model_input - x0) / noise
    return (model_input - x0) / noise


class Keeper:
    """Keeps the known part during one run of `musicldm.sampling.denoise` over ``timesteps`` of a prepared scheduler.

    Raises:
        ValueError: for a mask or noises that do not fit, or a scheduler whose predictions are of an unknown kind.
    """

    def __init__(self, known: Known | tuple, scheduler: SchedulerMixin, latents: Tensor, timesteps: Tensor):
        x0, mask, noises = check_known(known, latents, len(timesteps))
        self.scheduler, self.x0 = scheduler, x0.to(latents)
        self.kept = mask.to(latents)  # 0 to 1
        self.noises = None if noises is None else noises.to(latents)
        self.first = len(scheduler.timesteps) - len(timesteps)  # of the scheduler's, if these are the last few
        self.kind = "flow_prediction" if is_flow(scheduler) else scheduler.config.prediction_type
        if self.kind not in PREDICTIONS:
            raise ValueError(
                f"cannot keep a part with prediction_type {self.kind!r}; known are {', '.join(PREDICTIONS)}"
            )
        self.level = NoiseLevel(0.0, 1.0)

    def before(self, i: int, t: Tensor, state: Tensor) -> Tensor:
        """The ``state`` that is evaluated at the i-th of the time steps, ``t``."""
        self.level = noise_level(self.scheduler, t, self.first + i)
        if self.noises is None:
            return state
        return self.kept * add_noise(self.x0, self.noises[i], self.level) + (1 - self.kept) * state

    def after(self, prediction: Tensor, model_input: Tensor) -> Tensor:
        """The ``prediction`` to go on with."""
        if self.noises is not None:
            return prediction
        told = imposed(prediction, model_input, self.x0, self.level, self.kind)
        return self.kept * told + (1 - self.kept) * prediction


def check_known(known: Known | tuple, latents: Tensor, n_evaluations: int) -> Known:
    """``known`` with its names; ValueError unless it fits ``latents`` and as many evaluations."""
    if not isinstance(known, tuple) or len(known) != 3:
        raise ValueError(f"known must be (x0, mask, noises), got {shown(known)}")
    x0, mask, noises = known
    for name, value in (("x0", x0), ("mask", mask)):
        check_kind(f"known {name}", value, Tensor, "a tensor")
    if x0.shape != latents.shape:
        raise ValueError(f"known x0 must be of the latents' shape {tuple(latents.shape)}, got {tuple(x0.shape)}")
    sizes = zip(reversed(mask.shape), reversed(latents.shape), strict=False)
    if mask.ndim > latents.ndim or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(f"known mask must broadcast to {tuple(latents.shape)}, got {tuple(mask.shape)}")
    if mask.device.type != "meta" and not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError("known mask must be from 0 (new) to 1 (kept)")
    if noises is not None and noises.shape != (n_evaluations, *latents.shape):
        wanted = (n_evaluations, *latents.shape)
        raise ValueError(f"known noises must be one for each evaluation, {wanted}, got {tuple(noises.shape)}")
    return Known(x0, mask, noises)


def skip_noisier(scheduler: SchedulerMixin, num_inference_steps: int, level: float) -> int:
    """Let a prepared ``scheduler`` begin at the noisiest of its steps whose time is at most the share ``level`` of all.

    It is then as one prepared for these steps alone; its last step is always left. Returns the number of steps.
    """
    times = scheduler.timesteps
    warm_ups = hasattr(scheduler, "plms_timesteps")  # PNDM: it evaluates some times again at its beginning
    if warm_ups:
        times = torch.from_numpy(scheduler._timesteps[::-1].copy())
    elif scheduler.order == 2:
        times = times[::2]
    most = level * scheduler.config.num_train_timesteps * (1 + 1e-6)
    skipped = min(int((times > most).sum()), num_inference_steps - 1)
    if not skipped:
        return num_inference_steps
    if warm_ups:
        _restart(scheduler, times[skipped:])
    else:
        cut = scheduler.order * skipped
        for name in ("timesteps", *CUT):
            if getattr(scheduler, name, None) is not None:
                setattr(scheduler, name, getattr(scheduler, name)[cut:])
    return num_inference_steps - skipped


def _restart(scheduler: SchedulerMixin, times: Tensor) -> None:
    """Let PNDM run over ``times``, noisiest first, by its linear multistep method alone."""
    again = torch.cat([times[:2], times[1:]])  # the second is evaluated twice
    scheduler.register_to_config(skip_prk_steps=True)
    scheduler.prk_timesteps, scheduler.plms_timesteps = again[:0].numpy(), again.numpy()
    scheduler._timesteps, scheduler.timesteps = times.flip(0).numpy(), again.to(torch.int64)
