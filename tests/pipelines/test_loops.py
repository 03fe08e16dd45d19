"""Loops: music whose end leads into its start."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from musicldm import MusicLDMAudioToAudioPipeline, MusicLDMPipeline
from musicldm.analysis.seams import loop_quantile
from musicldm.kernels import tiled_decoding as tiles
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


def test_an_odd_number_of_frames_is_closed_too(exact_pipeline):
    """The end of one turn and the start of the next differ no more than neighbours do."""
    made = exact_pipeline("a harp", latents=noise(7), output_type="pt", **OPTIONS).audios[0].double()
    steps = (torch.cat([made, made[:1]]) - torch.cat([made[-1:], made])).abs()
    assert steps[0] <= steps.max() * 0.999
    assert len(made) == 7 * FRAME


def test_long_loops_are_decoded_in_pieces(exact_pipeline, monkeypatch):
    whole = exact_pipeline("drums", latents=noise(24), output_type="pt", **OPTIONS).audios
    monkeypatch.setattr(tiles, "LONGEST_WHOLE", 32)
    monkeypatch.setattr(tiles.decode, "__defaults__", (5, False))  # latent frames of a piece
    in_pieces = exact_pipeline("drums", latents=noise(24), output_type="pt", **OPTIONS).audios
    assert (in_pieces - whole).abs().max() < 1e-6 * whole.abs().max()
    rotated = exact_pipeline("drums", latents=noise(24).roll(6, 2), output_type="pt", **OPTIONS).audios
    assert (rotated - whole.roll(6 * FRAME, 1)).abs().max() < 1e-6 * whole.abs().max()


def test_a_vocoder_goes_round_in_tiles(exact_pipeline):
    vocoder = exact_pipeline.vocoder
    planes = 2 * torch.randn(1, 1, 90, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 3
    with torch.no_grad():
        music = tiles.vocode(vocoder, planes, loop=True)
        in_tiles = tiles.vocode(vocoder, planes.roll(2, 2), 30, loop=True)
    assert music.shape == (1, 90 * 80)
    assert (in_tiles - music.roll(160, 1)).abs().max() < 1e-6 * music.abs().max()


def test_loops_and_lines_at_a_time(tiny_pipeline):
    def call(number):
        length = 0.16 * (1 + number % 2)
        return tiny_pipeline("drums", length, num_inference_steps=3, seed=number, loop=number % 4 in (1, 2)).audios

    alone = [call(number) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(call, range(8)))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def test_loops_of_parts_that_are_offloaded(tiny_folder):  # layer by layer: tests/models/test_circular.py
    expected = MusicLDMPipeline.from_pretrained(tiny_folder)("drums", 0.32, seed=0, **OPTIONS).audios
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert np.abs(pipeline("drums", 0.32, seed=0, **OPTIONS).audios - expected).max() < 1e-5


def test_an_optimized_pipeline_makes_nearly_the_same_loop(tiny_folder):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    expected = pipeline("drums", 0.32, seed=0, **OPTIONS).audios
    made = MusicLDMPipeline.from_pretrained(tiny_folder).optimize(bfloat16=False)("drums", 0.32, seed=0, **OPTIONS)
    assert np.abs(made.audios - expected).max() < 1e-4 * np.abs(expected).max() + 1e-5


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


@pytest.mark.slow
@torch.no_grad()
def test_the_bundled_model_makes_loops():
    """Rotating the noise by strides of 0.64 s rotates the waveform, and its end leads into its start."""
    pipeline = MusicLDMPipeline.from_pretrained("mini")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler("dpm++", pipeline.scheduler)
    noise = torch.randn(1, 16, 64, 8, generator=torch.Generator().manual_seed(1))
    options = {"num_inference_steps": 8, "guidance_scale": 3.0, "loop": True}
    music, turned = (pipeline("upbeat funk", latents=noise.roll(by, 2), **options).audios[0] for by in (0, 8))
    assert np.abs(turned - np.roll(music, 8 * 1280)).max() < 1e-4 * np.abs(music).max()
    assert loop_quantile(music, pipeline.sampling_rate) < 0.95
