"""Every sampler name stands for a scheduler that runs on the model's own schedule."""

from inspect import signature

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from musicldm.sampling import Condition, Guidance, denoise, prepare_timesteps
from musicldm.sampling.schedulers import FLOW_SCHEDULERS, SCHEDULERS, make_scheduler
from tests.helpers.tiny import make_unet

# diffusers hands tensors to NumPy functions at every step
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

TRAINED_WITH = dict(  # noqa: C408
    num_train_timesteps=1000, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False,
    set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
)  # fmt: skip


def test_names_are_of_the_family_that_the_pipeline_takes():
    family = {scheduler.name for scheduler in KarrasDiffusionSchedulers}
    assert {class_name for class_name, _ in SCHEDULERS.values()} <= family
    assert len(SCHEDULERS) >= 10


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedule_and_prediction_are_kept(name, tmp_path):
    DDIMScheduler(**TRAINED_WITH).save_pretrained(tmp_path)  # as a model folder holds it
    scheduler = make_scheduler(name, DDIMScheduler.from_pretrained(tmp_path))
    original = DDIMScheduler(**TRAINED_WITH)
    assert torch.equal(scheduler.betas, original.betas)
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(10)
    noisiest = int(scheduler.timesteps[0])
    assert noisiest >= (999 if name != "ddim" else 901)  # few steps, and yet none of the noise forgotten


@pytest.mark.parametrize("name", SCHEDULERS)
def test_exact_predictions_lead_to_the_image(name):
    """A model that knows x0 and answers with the noise that is really in its input is denoised to x0."""
    scheduler = make_scheduler(name, DDIMScheduler(**TRAINED_WITH | {"prediction_type": "epsilon"}))
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().numpy()
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(1, 1, 16, 16, generator=generator)
    scheduler.set_timesteps(20)
    x = torch.randn(x0.shape, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        alpha_bar = 1 / (1 + np.interp(float(t), np.arange(1000), sigmas) ** 2)  # samplers may stop between steps
        noise = (scheduler.scale_model_input(x, t) - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
        options = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
        x = scheduler.step(noise, t, x, **options).prev_sample
    assert (x - x0).square().mean().sqrt() < 0.06


class Transfers(TorchDispatchMode):
    """Counts operations that take tensors of one device to another; reading a value of device "meta" raises anyway."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        before, after = (
            {x.device.type for x in tree_leaves(tree) if isinstance(x, torch.Tensor)}
            for tree in ((arguments, options), result)
        )
        self.count += bool(before) and not after <= before
        return result


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "unipc"])
def test_the_loop_never_waits_for_a_device(name):
    """Latents and UNet lie on a device whose values nobody can know; only the time steps are brought there, at once."""
    scheduler = make_scheduler(name, DDIMScheduler(**TRAINED_WITH))
    timesteps = prepare_timesteps(scheduler, 6)
    unet = make_unet().to("meta")
    latents = torch.empty(2, unet.config.in_channels, 8, 4, device="meta")
    embedding = torch.empty(4, unet.config.projection_class_embeddings_input_dim, device="meta")
    with torch.no_grad(), Transfers() as transfers:
        result = denoise(unet, scheduler, latents, Condition(embedding), timesteps, Guidance(2.0))
    assert result.shape == latents.shape
    assert transfers.count == 1


def test_unknown_name_gets_the_list():
    with pytest.raises(ValueError, match=r"'dpm\+\+2m'.*ddim, .*unipc"):
        make_scheduler("dpm++2m", DDIMScheduler(**TRAINED_WITH))


def settings(scheduler) -> dict:
    """Class and public configuration."""
    return {"class": type(scheduler).__name__} | {k: v for k, v in scheduler.config.items() if not k.startswith("_")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "names"),
    [(DDIMScheduler(**TRAINED_WITH), SCHEDULERS), (FlowMatchEulerDiscreteScheduler(), FLOW_SCHEDULERS)],
    ids=["noise", "flow"],
)
def test_no_sampler_leaves_anything_to_the_next(own, names, tmp_path):
    fresh = {name: settings(make_scheduler(name, own)) for name in names}
    for first in names:
        made = make_scheduler(first, own)
        made.save_pretrained(tmp_path / first)
        loaded = type(made).from_pretrained(tmp_path / first)
        for then in names:
            assert settings(make_scheduler(then, made)) == fresh[then], (first, then)
        for then in ("ddim", "dpm++") if names is SCHEDULERS else names:
            again = settings(make_scheduler(then, loaded))
            assert {name: again[name] for name in fresh[then]} == fresh[then], (first, then, "saved between")
    assert fresh["ddim" if names is SCHEDULERS else "euler"] == settings(own)


def test_settings_of_another_sampler_are_not_the_models():
    theirs = EulerDiscreteScheduler.from_config(
        DDIMScheduler(**TRAINED_WITH).config, use_karras_sigmas=True, timestep_spacing="trailing", sigma_min=0.1
    )
    ours = settings(make_scheduler("dpm++", theirs))
    expected = settings(make_scheduler("dpm++", DDIMScheduler(**TRAINED_WITH)))
    assert {name: ours[name] for name in expected} == expected


def test_a_pipeline_saved_with_a_sampler_knows_its_own(tiny_pipeline, tmp_path):
    from musicldm import MusicLDMPipeline

    own = settings(tiny_pipeline.scheduler)
    tiny_pipeline.scheduler = make_scheduler("dpm++-sde", tiny_pipeline.scheduler)
    tiny_pipeline.save_pretrained(tmp_path)
    loaded = MusicLDMPipeline.from_pretrained(tmp_path).scheduler
    assert loaded.config.algorithm_type == "sde-dpmsolver++"
    again = settings(make_scheduler("ddim", loaded))
    assert {name: again[name] for name in own} == own
    assert make_scheduler("dpm++", loaded).config.algorithm_type == "dpmsolver++"
