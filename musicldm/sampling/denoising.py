"""Noise to latents: the first noise, the denoising loop and what it hands to diffusers' schedulers.

    noise (B, C, T, F)  -> UNet and scheduler, step by step ->  latents (B, C, T, F)

Song et al. (2021), DDIM. https://arxiv.org/abs/2010.02502
Ho and Salimans (2022), classifier-free guidance. https://arxiv.org/abs/2207.12598; in a part of the steps only:
Kynkäänniemi et al. (2024), https://arxiv.org/abs/2404.07724
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, TypeAlias

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor, nn

from musicldm.config.values import check_kind, check_number, check_whole, shown
from musicldm.sampling.condition import Condition, predict
from musicldm.sampling.known import Keeper, Known, skip_noisier
from musicldm.sampling.turning import LeaningGenerator, TurnedGenerator, turn_noise, turning

ALL_NOISE = (0.0, 1.0)  # an interval of guidance: the shares of the training's time steps between which there is some

Noise: TypeAlias = (
    Generator | list[Generator] | None
)  # one generator for a batch, one for each of its items, or torch's own
OnStep = Callable[[int, Tensor, Tensor, Condition], tuple[Tensor, Condition] | None]
Correct = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Guidance:
    """How strongly the condition is followed, and where; what changes while a run goes on holds from the next step."""

    scale: float = 1.0  # 1: as the network predicts
    interval: tuple[float, float] = ALL_NOISE  # shares of the training's time steps: of the noise
    context_scale: float = 1.0  # how strongly a context is followed, where there is one


def make_generators(seed: int | None, generator: Noise, n_items: int) -> Noise:
    """One CPU generator for each item, seeded ``seed + item``, or ``generator`` as it is.

    Raises:
        ValueError: if both are given, or a list does not have one generator for each item.
    """
    if seed is not None:
        check_seed(seed)
        if generator is not None:
            raise ValueError(f"give either seed or generator, got both (seed {seed})")
        return [Generator("cpu").manual_seed(int(seed) + item) for item in range(n_items)]
    kind = "a torch.Generator, a list of one for each waveform, or None; seed takes a number"
    check_kind("generator", generator, (Generator, list, type(None)), kind)
    for one in generator if isinstance(generator, list) else ():
        check_kind("generator", one, Generator, kind)
    if isinstance(generator, list) and len(generator) != n_items:
        raise ValueError(f"{len(generator)} generators for {n_items} waveforms; give one, or one for each waveform")
    return generator


def prepare_timesteps(scheduler: SchedulerMixin, num_inference_steps: int) -> Tensor:
    """Set the scheduler up for a run; its time steps, noisiest first.

    They stay on the CPU, where schedulers look numbers up by them: on a GPU each look-up would wait for the device.

    Raises:
        ValueError: for a number of steps that it cannot make.
    """
    check_whole("num_inference_steps", num_inference_steps)
    trained = scheduler.config.num_train_timesteps
    if num_inference_steps > trained:
        raise ValueError(f"num_inference_steps={num_inference_steps} exceeds the {trained} steps of the training")
    scheduler.set_timesteps(num_inference_steps, device="cpu")
    last = scheduler.timesteps.max()
    if not hasattr(scheduler, "sigmas") and last >= trained:  # these look the noise level up in a table
        raise ValueError(
            f"num_inference_steps={num_inference_steps} makes {type(scheduler).__name__} start from step {int(last)}, "
            f"beyond the training's {trained - 1}; ask for fewer steps"
        )
    return scheduler.timesteps


def prepare_later_timesteps(
    scheduler: SchedulerMixin, num_inference_steps: int, noise_level: float
) -> tuple[Tensor, int]:
    """As `prepare_timesteps`, without those noisier than ``noise_level``, a share of the training's; and their number.

    1 leaves all of them; the last step is always left. The scheduler is then as one prepared for these steps alone.

    Raises:
        ValueError: that of `prepare_timesteps`, or for a level that is not above 0 and at most 1.
    """
    check_number("init_noise_level", noise_level, 0, 1)
    if noise_level == 0:
        raise ValueError("init_noise_level must be above 0 (the audio as it is) and at most 1 (all new), got 0")
    prepare_timesteps(scheduler, num_inference_steps)
    n_steps = num_inference_steps if noise_level == 1 else skip_noisier(scheduler, num_inference_steps, noise_level)
    return scheduler.timesteps, n_steps


def draw_noise(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    generator: Noise = None,
    latents: Tensor | None = None,
) -> Tensor:
    """Normal noise of ``shape``, drawn or given as ``latents``."""
    if latents is None:
        with turning(generator):
            latents = randn_tensor(tuple(shape), generator=generator, device=device, dtype=dtype)
    return latents.to(device, dtype)


def first_noise(
    scheduler: SchedulerMixin,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    generator: Noise = None,
    latents: Tensor | None = None,
) -> Tensor:
    """`draw_noise`, scaled as a prepared ``scheduler`` wants it."""
    noise = draw_noise(shape, dtype, device, generator, latents)
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)  # flows start from noise as it is


def denoise(
    unet: nn.Module,
    scheduler: SchedulerMixin,
    latents: Tensor,
    condition: Condition,
    timesteps: Tensor,
    guidance: Guidance | None = None,
    *,
    on_step: OnStep | None = None,
    correct: Correct | None = None,
    known: Known | tuple[Tensor, Tensor, Tensor | None] | None = None,
    evaluate: Callable[..., Tensor] = predict,
    **step_options: Any,
) -> Tensor:
    """``latents (B, C, T, F)``, of any window in time, taken from the first to the last of ``timesteps``.

    ``timesteps`` are the prepared scheduler's: all of them, or the last few for latents that are partly denoised.
    ``condition`` has B rows, or for guidance 2B, of which the unconditional ones are left out outside of the interval
    of guidance; a context is then followed as the network predicts, too. After each step
    ``on_step(i, t, latents, condition)`` returns the latents and the condition to go on with, or None to stop.
    ``correct(prediction, model_input, t)`` may change what the UNet predicts, guidance included, of the latents that it
    was given. ``known``, of `Known`, keeps a part of the latents: by ``noises`` before each evaluation, else by the
    prediction. ``evaluate`` takes the place of `predict`. ``step_options`` are arguments of ``scheduler.step``, as of
    `options_of_step`.

    The loop never waits for a GPU, unless the scheduler does: UniPC solves a system there, and noise of a CPU generator
    has to be brought.
    """
    guidance = guidance or Guidance()
    condition = replace(condition, embedding=condition.embedding.to(unet.dtype))
    timesteps = timesteps.cpu()
    precision = torch.float32 if timesteps.is_floating_point() else timesteps.dtype  # not every device has float64
    there = timesteps.to(latents.device, precision)
    low, high = (share * scheduler.config.num_train_timesteps for share in guidance.interval)
    keeper = None if known is None else Keeper(known, scheduler, latents, timesteps)
    for i, t in enumerate(timesteps):
        if keeper is not None:
            latents = keeper.before(i, t, latents)
        scaled = latents
        if hasattr(scheduler, "scale_model_input"):  # flows have none
            scaled = scheduler.scale_model_input(latents, t)
        rows = condition if low <= float(t) <= high else condition.rows(len(latents))
        prediction = evaluate(unet, scaled, there[i], rows, guidance.scale, guidance.context_scale)
        if correct is not None:
            prediction = _corrected(correct(prediction, scaled, t), prediction)
        if keeper is not None:
            prediction = keeper.after(prediction, scaled)
        with turning(step_options.get("generator")):
            latents = scheduler.step(prediction, t, latents, **step_options).prev_sample
        if on_step is not None:
            changed = on_step(i, t, latents, condition)
            if changed is None:
                break
            latents, condition = changed
    return latents


def _corrected(changed: Tensor, prediction: Tensor) -> Tensor:
    if not isinstance(changed, Tensor) or changed.shape != prediction.shape:
        got = f"shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else shown(changed)
        raise ValueError(f"correct must return a prediction of shape {tuple(prediction.shape)}, got {got}")
    return changed


def options_of_step(scheduler: SchedulerMixin, latents: Tensor, eta: float, generator: Noise) -> dict[str, Any]:
    """What ``scheduler.step`` takes of ``eta`` and ``generator``, which are for ``latents``; schedulers differ."""
    if isinstance(generator, list) and hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = brownian_noise(latents, scheduler.sigmas, generator)
    accepted = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}


def brownian_noise(latents: Tensor, sigmas: Tensor, generators: list[Generator]) -> Callable[[Tensor, Tensor], Tensor]:
    """Noise for DPMSolverSDEScheduler, which takes no generator: on the CPU, each item's seed from its own generator.

    The scheduler asks twice for overlapping stretches of one Brownian motion, so it cannot be drawn step by step.
    """
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    low, high = sigmas[sigmas > 0].min().item(), sigmas.max().item()

    def motion(generators: list[Generator]) -> Callable[[Tensor, Tensor], Tensor]:
        generators = [each.first if isinstance(each, LeaningGenerator) else each for each in generators]
        turned = [each if isinstance(each, TurnedGenerator) else None for each in generators]
        if not any(turned):
            seeds = [torch.randint(2**62, (), generator=generator).item() for generator in generators]
            return BrownianTreeNoiseSampler(latents.cpu(), low, high, seeds)
        both = [
            motion([getattr(turn, name) if turn else each for turn, each in zip(turned, generators, strict=True)])
            for name in ("first", "other")
        ]
        shares = [turn.share if turn else 0.0 for turn in turned]

        def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
            rows = zip(*(each(sigma, sigma_next) for each in both), shares, strict=True)
            return torch.stack([turn_noise(first, other, share) for first, other, share in rows])

        return noise

    whole = motion(generators)
    return lambda sigma, sigma_next: whole(sigma.cpu(), sigma_next.cpu()).to(latents)


def check_seed(seed: int) -> None:
    """ValueError unless ``seed`` can seed a generator, and those of a batch after it."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, got {shown(seed)}")
