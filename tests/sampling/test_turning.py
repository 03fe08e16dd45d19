"""Noise turned towards other noise."""

import math

import pytest
import torch
from diffusers import DPMSolverSDEScheduler
from torch import Generator

from musicldm.sampling import TurnedGenerator, draw_noise, turn_noise
from musicldm.sampling.denoising import brownian_noise

SHAPE = (1, 4, 64, 16)


def seeded(seed):
    return Generator().manual_seed(seed)


def drawn(generator, dtype=torch.float32):
    return draw_noise(SHAPE, dtype, torch.device("cpu"), [generator])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_ends_are_the_noises_themselves(dtype):
    first, other = (torch.randn(SHAPE, generator=seeded(seed)).to(dtype) for seed in (1, 2))
    first[0, 0, 0, 0] = other[0, 0, 0, 1] = torch.finfo(dtype).smallest_normal  # which a sum would swallow
    assert torch.equal(turn_noise(first, other, 0), first)
    assert torch.equal(turn_noise(first, other, 1.0), other)
    assert turn_noise(first, other, 0) is not first


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_it_stays_normal_and_turns_evenly(share):
    first, other = (torch.randn(SHAPE, generator=seeded(seed), dtype=torch.float64) for seed in (1, 2))
    turned = turn_noise(first, other, share)
    assert float(turned.std()) == pytest.approx(1.0, abs=0.03)
    alike = float((turned * first).mean() / first.square().mean())
    assert alike == pytest.approx(math.cos(share * math.pi / 2), abs=0.04)
    torch.testing.assert_close(turn_noise(other, first, 1 - share), turned)


def test_a_turned_generator_draws_what_both_would():
    for share in (0, 0.3, 1):
        turned = TurnedGenerator(seeded(1), seeded(2), share)
        first, other = seeded(1), seeded(2)
        for _ in range(3):
            assert torch.equal(drawn(turned), turn_noise(drawn(first), drawn(other), share))


def test_a_turned_generator_may_be_turned_again():
    turned = TurnedGenerator(TurnedGenerator(seeded(1), seeded(2), 0.3), seeded(3), 0.6)
    expected = turn_noise(turn_noise(drawn(seeded(1)), drawn(seeded(2)), 0.3), drawn(seeded(3)), 0.6)
    assert torch.equal(drawn(turned), expected)
    sigmas = torch.linspace(10, 0.1, 5)

    def motion(*generators):
        return brownian_noise(torch.zeros(len(generators), 2, 3), sigmas, list(generators))(sigmas[1], sigmas[0])

    alone = [motion(seeded(seed)) for seed in (1, 2, 3)]
    expected = turn_noise(turn_noise(alone[0], alone[1], 0.3), alone[2], 0.6)
    turned = TurnedGenerator(TurnedGenerator(seeded(1), seeded(2), 0.3), seeded(3), 0.6)
    assert torch.equal(motion(turned, seeded(4)), torch.cat([expected, motion(seeded(4))]))


def test_others_beside_it_draw_as_ever():
    device = torch.device("cpu")
    rows = draw_noise((2, 3), torch.float32, device, [TurnedGenerator(seeded(1), seeded(2), 0.5), seeded(3)])
    assert torch.equal(rows[1:], draw_noise((1, 3), torch.float32, device, [seeded(3)]))


@pytest.mark.parametrize("share", [0, 0.4, 1])
def test_brownian_motion_turns_too(share):
    scheduler = DPMSolverSDEScheduler()
    scheduler.set_timesteps(5)
    latents = torch.zeros(2, 3, 4, 4)

    def noise(generator):
        between = scheduler.sigmas[0], scheduler.sigmas[3]
        return brownian_noise(latents, scheduler.sigmas, [generator, seeded(5)])(*between)

    turned = noise(TurnedGenerator(seeded(1), seeded(2), share))
    first, other = noise(seeded(1)), noise(seeded(2))
    assert torch.equal(turned[0], turn_noise(first[0], other[0], share))
    assert torch.equal(turned[1], first[1])


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "much", True])
def test_other_shares_are_refused(share):
    with pytest.raises(ValueError, match="share must be a"):
        turn_noise(torch.ones(2), torch.ones(2), share)
    with pytest.raises(ValueError, match="share must be a"):
        TurnedGenerator(seeded(1), seeded(2), share)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(3,\)"):
        turn_noise(torch.ones(2), torch.ones(3), 0.5)
    with pytest.raises(ValueError, match="first must be a tensor"):
        turn_noise([1.0], torch.ones(1), 0.5)
    with pytest.raises(ValueError, match=r"other must be a torch\.Generator"):
        TurnedGenerator(seeded(1), 2, 0.5)
    same = seeded(1)
    with pytest.raises(ValueError, match="two generators of one device"):
        TurnedGenerator(same, same, 0.5)
