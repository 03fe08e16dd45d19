"""Steering while denoising: estimates of what is being made, and patterns taken out of them."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from musicldm.novelty.steering import FLOOR_DB, Steering, estimate_terms, is_hum, movement_db
from musicldm.sampling import Condition, denoise, prepare_timesteps
from tests.helpers.melodies import melody, tones

BETAS = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
PREDICTIONS = ("epsilon", "v_prediction")
SHAPE = (2, 3, 24, 4)  # (B, C, T, F)


class Oracle(torch.nn.Module):
    """Stands in for a UNet that learned one latent by heart: it predicts as if ``x0`` were under whatever it gets."""

    dtype = torch.float32

    def __init__(self, scheduler, x0):
        super().__init__()
        self.scheduler, self.x0 = scheduler, x0

    def forward(self, model_input, t, **_):
        gain, offset = estimate_terms(self.scheduler, t)
        return ((self.x0 - offset * model_input) / gain,)


def make_schedulers():
    for prediction in PREDICTIONS:
        for kind in (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler):
            options = {"clip_sample": False, "set_alpha_to_one": True} if kind is DDIMScheduler else {}
            yield kind(**BETAS, **options, prediction_type=prediction)
    yield FlowMatchEulerDiscreteScheduler()


every_scheduler = pytest.mark.parametrize(
    "scheduler", list(make_schedulers()), ids=lambda s: f"{type(s).__name__}-{s.config.get('prediction_type')}"
)


def normal(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(scheduler, x0, correct=None):
    timesteps = prepare_timesteps(scheduler, 12)
    noise = normal(1) * getattr(scheduler, "init_noise_sigma", 1.0)
    return denoise(Oracle(scheduler, x0), scheduler, noise, Condition(torch.zeros(2, 5)), timesteps, correct=correct)


@every_scheduler
def test_estimates_are_what_the_scheduler_arrives_at(scheduler):
    # the schedulers' own arithmetic turns an oracle's predictions into x0 only if the terms are theirs
    x0 = normal(0)
    assert torch.allclose(run(scheduler, x0), x0, atol=0.06)


@every_scheduler
def test_a_rejected_pattern_is_gone_whatever_the_scheduler(scheduler):
    x0 = normal(0)
    steered = run(scheduler, x0, Steering(scheduler, SHAPE[2], 1.0, [[x0[0]], []]))
    centred = x0 - x0.mean(dim=2, keepdim=True)
    shares = ((steered * centred).sum(dim=(1, 2, 3)) / centred.square().sum(dim=(1, 2, 3))).tolist()
    assert shares == pytest.approx([0.0, 1.0], abs=0.06)
    assert torch.allclose(steered[0].mean(dim=1), x0[0].mean(dim=1), atol=0.06)  # what does not change in time stays


def test_only_the_shared_passage_is_taken_out():
    pattern, other = normal(2, SHAPE[1:]), normal(3, SHAPE[1:])
    latents = other.clone()
    latents[:, :12] = pattern[:, :12]  # copied up to the middle
    left = Steering(DDIMScheduler(), 4, 1.0, [[]]).without(latents, pattern)
    copied, own = np.array([(left - latents)[:, part].square().mean() for part in (slice(0, 10), slice(14, 24))])
    assert copied > 20 * own


def test_unknown_predictions_are_refused():
    with pytest.raises(ValueError, match="'sample'"):
        estimate_terms(DDIMScheduler(prediction_type="sample"), torch.tensor(10))


def test_each_item_has_its_own_strength():
    scheduler, x0 = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True), normal(0)
    steered = run(scheduler, x0, Steering(scheduler, SHAPE[2], [1.0, 0.25], [[x0[0]], [x0[1]]]))
    centred = x0 - x0.mean(dim=2, keepdim=True)
    left = ((steered * centred).sum(dim=(1, 2, 3)) / centred.square().sum(dim=(1, 2, 3))).tolist()
    assert left == pytest.approx([0.0, 0.75], abs=0.06)


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_a_hum_moves_less_than_music(rate):
    seconds = np.arange(4 * rate) / rate
    held = sum(np.sin(2 * np.pi * f * seconds) for f in (110, 220, 330, 440, 660)) / 10
    hum = held * (1 + 0.1 * np.sin(2 * np.pi * 0.5 * seconds))
    slow = held * np.repeat([1, 0.02, 0.6, 0.1], rate)  # four long notes
    assert movement_db(hum, rate) < FLOOR_DB < movement_db(slow, rate)
    for waveform in (hum, slow):  # the same at any loudness
        assert movement_db(waveform / 300, rate) == pytest.approx(movement_db(waveform, rate), abs=1e-3)
    assert movement_db(np.zeros(rate), rate) == 0.0


def test_sparse_music_is_no_hum():
    alone = tones([60, 62], 4.0, decay=1.0)  # two notes, ringing on
    assert movement_db(alone, 16_000) > FLOOR_DB
    assert movement_db(melody(0), 16_000) > FLOOR_DB
    assert is_hum(1.2, [5.0, 6.0])
    assert not is_hum(1.2, [1.3, 6.0])  # a drone was rejected, and a drone is left
    assert not is_hum(FLOOR_DB, [9.0])
