"""Latents of which a part is known: noise levels of every sampler, kept parts, and runs that begin later."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverSDEScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler
from torch import nn

from musicldm.sampling import (
    FLOW_SCHEDULERS,
    SCHEDULERS,
    Condition,
    Guidance,
    Known,
    add_noise,
    denoise,
    make_scheduler,
    noise_level,
    prepare_later_timesteps,
    prepare_timesteps,
)
from musicldm.sampling.denoising import options_of_step

# diffusers hands tensors to NumPy functions at every step
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

BETAS = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
SHAPE = (2, 3, 12, 4)  # (B, C, T, F)
STEPS = 7


def own(prediction: str):
    """The scheduler of a model that predicts so."""
    if prediction == "flow":
        return FlowMatchEulerDiscreteScheduler()
    return DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction)


NAMES = [(name, "flow") for name in FLOW_SCHEDULERS]
NAMES += [(name, prediction) for name in SCHEDULERS for prediction in ("epsilon", "v_prediction")]
every_sampler = pytest.mark.parametrize(("name", "prediction"), NAMES)


def normal(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Oracle(nn.Module):
    """A network that takes ``x0`` to be under whatever it gets, and notes the noise that it found in it.

    It computes from the time alone, as a network does.
    """

    dtype = torch.float64

    def __init__(self, scheduler, x0):
        super().__init__()
        self.x0, self.noises, self.levels = x0, [], []
        self.config, self.is_flow = scheduler.config, not hasattr(scheduler, "alphas_cumprod")
        self.is_flow |= bool(scheduler.config.get("use_flow_sigmas", False))
        self.scheduler = scheduler

    def forward(self, model_input, t, **_):
        signal, noise = self.level(float(t))
        found = (model_input - signal * self.x0) / noise
        self.noises.append(found)
        if self.is_flow:
            return (found - self.x0,)
        return (found if self.config.prediction_type == "epsilon" else signal * found - noise * self.x0,)

    def level(self, t):
        if self.is_flow:
            return 1 - t / 1000, t / 1000
        sigmas = ((1 - self.scheduler.alphas_cumprod) / self.scheduler.alphas_cumprod).double().sqrt().log()
        low = min(int(t), 998)  # samplers stop between the steps of the training, at means of logarithms
        sigma = torch.lerp(sigmas[low], sigmas[low + 1], t - low).exp()
        return float(1 / (1 + sigma**2) ** 0.5), float(sigma / (1 + sigma**2) ** 0.5)


def run(scheduler, timesteps, network, latents, eta=0.0, **options):
    condition = Condition(torch.zeros(len(latents), 5, dtype=torch.float64))
    generator = [torch.Generator().manual_seed(seed) for seed in range(len(latents))]
    options |= options_of_step(scheduler, latents, eta, generator)
    return denoise(network, scheduler, latents, condition, timesteps, Guidance(1.0), **options)


@every_sampler
def test_a_replaced_part_has_the_noise_of_the_samplers_state(name, prediction):
    """At every evaluation the network finds the given noise in it, of which no other level has power 1."""
    scheduler = make_scheduler(name, own(prediction))
    timesteps = prepare_timesteps(scheduler, STEPS)
    x0, noises = normal(0), normal(1, (len(timesteps), *SHAPE))
    oracle = Oracle(scheduler, x0)
    state = normal(2) * getattr(scheduler, "init_noise_sigma", 1.0)
    run(scheduler, timesteps, oracle, state, known=(x0, torch.ones(1, 1, 12, 1), noises))
    assert len(oracle.noises) == len(timesteps)
    # times are rounded to whole steps of the training by some samplers
    for found, noise in zip(oracle.noises, noises, strict=True):
        assert (found - noise).norm() < 0.02 * noise.norm()


class Blind(nn.Module):
    """A network that knows nothing: its predictions are noise of its own."""

    dtype = torch.float64

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(9)

    def forward(self, model_input, t, **_):
        return (torch.randn(model_input.shape, generator=self.generator, dtype=torch.float64),)


@every_sampler
def test_an_imposed_part_arrives_whatever_the_network_says(name, prediction):
    scheduler = make_scheduler(name, own(prediction))
    timesteps = prepare_timesteps(scheduler, STEPS)
    x0, mask = normal(0), torch.zeros(1, 1, 12, 1)
    mask[:, :, :5] = 1
    state = normal(2) * getattr(scheduler, "init_noise_sigma", 1.0)
    made = run(scheduler, timesteps, Blind(), state, known=Known(x0, mask))
    other = make_scheduler(name, own(prediction))
    free = run(other, prepare_timesteps(other, STEPS), Blind(), state)
    # these end at the first noise of the training, 0.039; PNDM also rounds its steps
    assert (made - x0)[:, :, :5].abs().max() < (0.25 if name in ("ddim", "ddpm", "pndm", "deis") else 1e-3)
    assert torch.equal(made[:, :, 5:], free[:, :, 5:])


@every_sampler
def test_all_new_is_as_without(name, prediction):
    made = []
    for known in (None, Known(normal(0), torch.zeros(1, 1, 12, 1)), (normal(0), torch.zeros(SHAPE), "noises")):
        scheduler = make_scheduler(name, own(prediction))
        timesteps = prepare_timesteps(scheduler, STEPS)
        if known is not None and known[2] is not None:
            known = (*known[:2], normal(1, (len(timesteps), *SHAPE)))
        state = normal(2) * getattr(scheduler, "init_noise_sigma", 1.0)
        made.append(run(scheduler, timesteps, Blind(), state, known=known))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


# --- beginning later --------------------------------------------------------------------------------------------------

LEVELS = (1e-6, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 0.999, 1.0)


@every_sampler
def test_steps_and_first_time_follow_the_level(name, prediction):
    before = (0, -1.0)
    for level in LEVELS:
        scheduler = make_scheduler(name, own(prediction))
        timesteps, n_steps = prepare_later_timesteps(scheduler, 20, level)
        now = (n_steps, float(timesteps[0]))
        assert now >= before
        assert now[1] <= 1000 * level + 1e-3 or n_steps == 1
        assert timesteps.equal(scheduler.timesteps)
        before = now
    whole = prepare_timesteps(make_scheduler(name, own(prediction)), 20)
    assert before[0] == 20
    assert timesteps.equal(whole)


@every_sampler
@pytest.mark.parametrize("level", [0.03, 0.4, 0.8])
def test_a_noised_source_is_found_again(name, prediction, level):
    """A network that knows the source takes it, noised to where the run begins, to itself."""
    scheduler = make_scheduler(name, own(prediction))
    timesteps, n_steps = prepare_later_timesteps(scheduler, 20, level)
    x0, noise = normal(0), normal(1)
    oracle = Oracle(scheduler, x0)
    state = add_noise(x0, noise, noise_level(scheduler, timesteps[0], 0))
    made = run(scheduler, timesteps, oracle, state)
    assert (oracle.noises[0] - noise).norm() < 0.04 * noise.norm()
    assert (made - x0).square().mean().sqrt() < 0.06
    assert len(oracle.noises) == len(timesteps) >= n_steps


ONE_STEP = [pair for pair in NAMES if pair[0] in ("ddim", "euler", "heun", "dpm2") and pair[1] != "epsilon"]


@pytest.mark.parametrize(("name", "prediction"), ONE_STEP)
def test_the_later_steps_of_a_run_are_its_last_ones(name, prediction):
    """A sampler of one step at a time, without memory, goes through the same states."""
    scheduler = make_scheduler(name, own(prediction))
    timesteps = prepare_timesteps(scheduler, 20)
    states = []

    def note(i, t, latents, condition):
        states.append(latents)
        return latents, condition

    x0, x1 = normal(0), normal(3)

    class Between(Oracle):
        def forward(self, model_input, t, **_):
            self.x0 = torch.lerp(x0, x1, float(t) / 1000)
            return super().forward(model_input, t)

    state = normal(2) * getattr(scheduler, "init_noise_sigma", 1.0)
    whole = run(scheduler, timesteps, Between(scheduler, x0), state, on_step=note)
    later = make_scheduler(name, own(prediction))
    last, n_steps = prepare_later_timesteps(later, 20, 0.5)
    begun = len(timesteps) - len(last)
    made = run(later, last, Between(later, x0), states[begun - 1])
    assert n_steps in (9, 10, 11)
    torch.testing.assert_close(made, whole, rtol=1e-9, atol=1e-9)


def test_other_schedulers_of_the_family_begin_later_too():
    for scheduler in (
        PNDMScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),  # with its Runge-Kutta steps
        DPMSolverSDEScheduler(**BETAS, timestep_spacing="linspace"),
    ):
        timesteps, _ = prepare_later_timesteps(scheduler, 20, 0.4)
        x0 = normal(0)
        state = add_noise(x0, normal(1), noise_level(scheduler, timesteps[0], 0))
        made = run(scheduler, timesteps, Oracle(scheduler, x0), state)
        assert (made - x0).square().mean().sqrt() < 0.06, type(scheduler).__name__


@pytest.mark.parametrize("level", [0, -0.1, 1.001, float("nan"), "half", None, True])
def test_other_levels_are_refused(level):
    with pytest.raises(ValueError, match="init_noise_level must be"):
        prepare_later_timesteps(own("epsilon"), 10, level)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ((normal(0), torch.ones(SHAPE)), r"known must be \(x0, mask, noises\)"),
        ((normal(0)[:1], torch.ones(SHAPE), None), r"x0 must be of the latents' shape \(2, 3, 12, 4\), got \(1, 3"),
        ((normal(0), torch.ones(5), None), r"mask must broadcast to \(2, 3, 12, 4\), got \(5,\)"),
        ((normal(0), torch.full((1,), 1.5), None), "mask must be from 0"),
        ((normal(0), torch.full((1,), torch.nan), None), "mask must be from 0"),
        ((normal(0), torch.ones(1), normal(1)), r"one for each evaluation, \(7, 2, 3, 12, 4\), got \(2, 3, 12, 4\)"),
        ((None, torch.ones(1), None), "known x0 must be a tensor"),
    ],
)
def test_what_does_not_fit_is_refused(known, message):
    scheduler = own("epsilon")
    with pytest.raises(ValueError, match=message):
        run(scheduler, prepare_timesteps(scheduler, STEPS), Blind(), normal(2), known=known)


def test_unknown_predictions_are_refused():
    scheduler = DDIMScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type 'sample'; known are epsilon, v_prediction"):
        run(scheduler, prepare_timesteps(scheduler, STEPS), Blind(), normal(2), known=(normal(0), torch.ones(1), None))
