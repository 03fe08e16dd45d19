"""First noise with something added to it, in whole calls of the pipeline."""

import pytest
import torch

from musicldm.sampling import LeaningGenerator, draw_noise
from musicldm.sampling.schedulers import make_scheduler

SHAPE = (2, 4, 8, 4)  # latents of 0.32 s


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_only_the_first_noise_of_a_waveform_leans():
    lean = torch.linspace(-1, 1, 128).reshape(SHAPE[1:])
    generators = [LeaningGenerator(seeded(1), lean), seeded(2)]
    plain = [seeded(1), seeded(2)]
    first, later = (draw_noise(SHAPE, torch.float64, torch.device("cpu"), generators) for _ in range(2))
    expected, expected_later = (draw_noise(SHAPE, torch.float64, torch.device("cpu"), plain) for _ in range(2))
    assert torch.equal(first[0], expected[0] + lean)
    assert torch.equal(first[1], expected[1])
    assert torch.equal(later, expected_later)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler-a", "dpm++-sde"])
def test_a_call_begins_with_the_leaning_noise(name, exact_pipeline):
    if name == "dpm++-sde":
        pytest.importorskip("torchsde")
    exact_pipeline.scheduler = make_scheduler(name, exact_pipeline.scheduler)
    lean = 0.3 * torch.randn(SHAPE[1:], generator=seeded(9))
    options = {"audio_length_in_s": 0.32, "num_inference_steps": 3}
    leaning = [LeaningGenerator(seeded(1), lean), seeded(2)]
    made = exact_pipeline(["a", "b"], generator=leaning, **options).audios
    generators = [seeded(1), seeded(2)]
    latents = draw_noise(SHAPE, torch.float64, torch.device("cpu"), generators)
    latents[0] += lean
    expected = exact_pipeline(["a", "b"], generator=generators, latents=latents, **options).audios
    assert abs(made - expected).max() < 1e-6
    plain = exact_pipeline(["a", "b"], generator=[seeded(1), seeded(2)], **options).audios
    assert abs(made[0] - plain[0]).max() > 1e-3
    assert abs(made[1] - plain[1]).max() < 1e-6


@pytest.mark.parametrize(("first", "lean"), [(1, torch.zeros(1)), (seeded(1), [0.0])])
def test_what_cannot_lean_is_refused(first, lean):
    with pytest.raises(ValueError, match="must be a"):
        LeaningGenerator(first, lean)
