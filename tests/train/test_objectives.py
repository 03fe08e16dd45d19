"""What the diffusion model is asked for, how errors are weighted, and that samplers find back what was asked for."""

import pytest
import torch

from musicldm.config import DiffusionConfig
from musicldm.sampling.condition import Condition
from musicldm.sampling.denoising import denoise, first_noise, prepare_timesteps
from musicldm.sampling.schedulers import FLOW_SCHEDULERS, SCHEDULERS
from musicldm.sampling.schedulers import make_scheduler as sampler
from musicldm.train.diffusion.objectives import make_scheduler, min_snr_weights, question, text_share, weighted_losses

FLOW = DiffusionConfig(prediction="flow")


def test_the_flow_is_straight_from_music_to_noise():
    scheduler, generator = make_scheduler(FLOW), torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 8, 2, generator=generator)
    asked = question(x0, noise, torch.tensor([0, 499, 999]), scheduler, "flow")
    assert asked.time.tolist() == [1, 500, 1000]
    torch.testing.assert_close(asked.noisy[2], noise[2])
    torch.testing.assert_close(asked.noisy[1], (x0[1] + noise[1]) / 2)
    sigma = (asked.time / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(asked.noisy - sigma * asked.target, x0)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
@pytest.mark.parametrize("steps", [5, 20])
def test_samplers_follow_the_flow(name, steps):
    """A network that knows x0 answers with the velocity at the time it is told; every sampler then arrives."""
    scheduler, generator = sampler(name, make_scheduler(FLOW)), torch.Generator().manual_seed(0)
    x0 = torch.randn(1, 4, 8, 2, generator=generator)

    class Knows(torch.nn.Module):
        dtype = torch.float32

        def forward(self, x, t, **_):
            return ((x - x0) / (t / 1000),)

    timesteps = prepare_timesteps(scheduler, steps)
    latents = first_noise(scheduler, x0.shape, torch.float32, torch.device("cpu"), generator)
    assert abs(float(latents.std()) - 1) < 0.2
    found = denoise(Knows(), scheduler, latents, Condition(torch.zeros(1, 3)), timesteps)
    assert (found - x0).square().mean().sqrt() < 0.02
    assert float(timesteps[0]) > 990


def test_samplers_that_follow_no_flow_are_refused():
    assert set(FLOW_SCHEDULERS) < set(SCHEDULERS)
    with pytest.raises(ValueError, match=r"'ddim'.*euler"):
        sampler("ddim", make_scheduler(FLOW))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weighs_errors_of_x0_by_the_limited_ratio(prediction):
    """Whatever the network predicts, the weighted loss is min(SNR, 5) times the squared error of the x0 it implies."""
    config = DiffusionConfig(prediction=prediction, min_snr=5.0)
    scheduler, generator = make_scheduler(config), torch.Generator().manual_seed(0)
    x0, noise, guess = torch.randn(3, 1, 4, 8, 2, generator=generator, dtype=torch.float64)
    for step in (50, 400, 900):
        timestep, a = torch.tensor([step]), scheduler.alphas_cumprod[step].double()
        asked = question(x0, noise, timestep, scheduler, prediction)
        losses = weighted_losses(guess, asked.target, timestep, scheduler, config)
        if prediction == "epsilon":
            implied = (asked.noisy - (1 - a).sqrt() * guess) / a.sqrt()
        else:
            implied = a.sqrt() * asked.noisy - (1 - a).sqrt() * guess
        expected = min(float(a / (1 - a)), 5.0) * (implied - x0).square().mean()
        assert float(losses["loss"]) == pytest.approx(float(expected), rel=1e-4)
        assert float(losses["unweighted"]) == pytest.approx(float((guess - asked.target).square().mean()))
    assert float(min_snr_weights(scheduler.alphas_cumprod, 5.0, prediction).max()) <= 1


def test_min_snr_and_shares_are_checked():
    with pytest.raises(ValueError, match="min_snr"):
        DiffusionConfig(prediction="flow", min_snr=5.0)
    with pytest.raises(ValueError, match="text_condition_last"):
        DiffusionConfig(text_condition_last=1.5)


def test_the_share_of_captions_changes_from_epoch_to_epoch():
    config = DiffusionConfig(text_condition=0.2, text_condition_last=1.0)
    assert [text_share(config, epoch, 5) for epoch in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert text_share(DiffusionConfig(text_condition=0.2), 3, 5) == 0.2
