"""Loops: music whose end leads into its start."""

import numpy as np
import pytest
import torch

from musicldm import MusicLDMAudioToAudioPipeline
from musicldm.sampling import make_scheduler

RATE, STRIDE = 8000, 2  # latent frames of the tiny UNet's stride, of 320 samples each
FRAME = 320
OPTIONS = {"num_inference_steps": 3, "guidance_scale": 2.0, "loop": True}


def noise(frames, seed=0):
    return torch.randn(1, 4, frames, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "heun"])
@pytest.mark.parametrize("frames", [8, 14])
def test_rotated_noise_gives_the_rotated_waveform(exact_pipeline, name, frames):
    exact_pipeline.scheduler = make_scheduler(name, exact_pipeline.scheduler)
    made = exact_pipeline("flute", latents=noise(frames), output_type="pt", **OPTIONS).audios
    turned = exact_pipeline("flute", latents=noise(frames).roll(STRIDE, 2), output_type="pt", **OPTIONS).audios
    assert made.shape == (1, frames * FRAME)
    # waveforms are returned in float32
    assert (turned - made.roll(STRIDE * FRAME, 1)).abs().max() < 1e-6 * made.abs().max()
    plain = exact_pipeline("flute", latents=noise(frames), output_type="pt", **OPTIONS | {"loop": False}).audios
    assert (plain - made).abs().max() > 1e-3 * made.abs().max()


def test_rotated_noise_gives_rotated_latents(exact_pipeline):
    options = OPTIONS | {"output_type": "latent", "cross_attention_kwargs": {"window": 4}}
    made, turned = (exact_pipeline("flute", latents=noise(16).roll(by, 2), **options).audios for by in (0, STRIDE))
    torch.testing.assert_close(turned, made.roll(STRIDE, 2), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("samples", [160, 161, 2560, 2719, 2721, 4003])
def test_any_length_to_the_sample(tiny_pipeline, samples):
    output = tiny_pipeline("flute", samples / RATE, seed=1, **OPTIONS)
    assert output.audios.shape == (1, samples)
    assert output.audios.dtype == np.float32
    assert np.isfinite(output.audios).all()


def test_a_stretched_loop_is_that_of_whole_frames(tiny_pipeline):
    """2570 samples are made of eight latent frames, 2560 samples, played 0.4 % slower."""
    whole = tiny_pipeline("flute", 0.32, seed=1, **OPTIONS).audios[0]
    longer = tiny_pipeline("flute", 2563 / RATE, seed=1, **OPTIONS).audios[0]
    at = np.arange(2563) * 2560 / 2563
    expected = np.interp(at, np.arange(2561), np.append(whole, whole[0]))
    spectra = [np.abs(np.fft.rfft(x))[:200] for x in (expected, longer)]  # interpolation is good for low frequencies
    assert np.linalg.norm(spectra[0] - spectra[1]) < 0.05 * np.linalg.norm(spectra[0])


def test_parts_and_other_calls_are_as_before(tiny_pipeline):
    before = {name: dict(vars(part)) for name, part in tiny_pipeline.components.items() if hasattr(part, "forward")}
    plain = tiny_pipeline("flute", 0.32, num_inference_steps=3, seed=1).audios
    inner = []

    def call(pipe, i, t, tensors):
        inner.append(pipe("flute", 0.32, num_inference_steps=3, seed=1).audios)
        return {}

    looped = tiny_pipeline("flute", 0.32, seed=1, **OPTIONS).audios
    again = tiny_pipeline("flute", 0.32, seed=1, callback_on_step_end=call, **OPTIONS).audios
    assert np.array_equal(again, looped)
    assert all(np.array_equal(each, plain) for each in inner)
    assert np.abs(plain - looped).max() > 1e-4
    for name, settings in before.items():
        assert vars(getattr(tiny_pipeline, name)).keys() == settings.keys()


def test_loops_of_a_recording(exact_pipeline):
    pipeline = MusicLDMAudioToAudioPipeline.from_pipe(exact_pipeline)
    t = np.arange(2560) / RATE
    audio = 0.3 * np.sin(2 * np.pi * 400 * t)
    made = pipeline("flute", audio, RATE, 0.5, num_inference_steps=4, seed=2, loop=True).audios
    assert made.shape == (1, 2560)
    plain = pipeline("flute", audio, RATE, 0.5, num_inference_steps=4, seed=2).audios
    assert np.abs(made - plain).max() > 1e-4
    exact = exact_pipeline("flute", 0.32, num_inference_steps=4, seed=2, loop=True).audios
    assert np.array_equal(pipeline("flute", audio, RATE, 1, num_inference_steps=4, seed=2, loop=True).audios, exact)


def test_candidates_of_a_loop_are_ranked(tiny_pipeline):
    output = tiny_pipeline("flute", 0.33, seed=1, num_waveforms_per_prompt=3, return_best=2, **OPTIONS)
    assert output.audios.shape == (2, 2640)
    assert output.scores.shape == (1, 2)


def test_too_short_a_loop_is_refused(tiny_pipeline):
    with pytest.raises(ValueError, match=r"at least half a latent frame for a loop, 0\.02 s, got 0\.015"):
        tiny_pipeline("flute", 0.015, **OPTIONS)
