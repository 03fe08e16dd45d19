"""Every sampler name stands for a scheduler that runs on the model's own schedule."""

from inspect import signature

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from musicldm.sampling import Condition, Guidance, denoise, prepare_timesteps
from musicldm.sampling.schedulers import SCHEDULERS, make_scheduler
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
