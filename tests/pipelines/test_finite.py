"""NaN and infinity: the error says which part made them first, and where to look."""

import copy

import numpy as np
import pytest
import torch

from musicldm import MusicLDMPipeline

FAST = {"num_inference_steps": 3, "audio_length_in_s": 0.16, "seed": 0}


@pytest.fixture
def pipeline(tiny_pipeline):
    """One of parts of its own."""
    for name in ("unet", "vae", "vocoder", "text_encoder"):
        setattr(tiny_pipeline, name, copy.deepcopy(getattr(tiny_pipeline, name)))
    return tiny_pipeline


@pytest.mark.parametrize(
    ("part", "weight"),
    [
        ("unet", "conv_in.weight"),
        ("vae", "decoder.conv_out.bias"),
        ("vocoder", "conv_post.bias"),
        ("text_encoder", "text_projection.linear1.bias"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_are_named(pipeline, part, weight, value):
    with torch.no_grad():
        getattr(pipeline, part).get_parameter(weight).fill_(value)
    if (part, value) == ("vocoder", float("inf")):
        assert np.isfinite(pipeline("drums", **FAST).audios).all()  # its last function is tanh, whose limit is 1
        return
    with pytest.raises(ValueError, match=rf"NaN or infinity: the {part} made them .* as in {weight}"):
        pipeline("drums", **FAST)


def test_what_ranks_is_named(pipeline):
    with torch.no_grad():
        pipeline.text_encoder.audio_projection.linear1.bias.fill_(float("nan"))
    assert np.isfinite(pipeline("drums", **FAST).audios).all()
    with pytest.raises(ValueError, match=r"the text_encoder made them .* as in audio_projection.linear1.bias"):
        pipeline("drums", num_waveforms_per_prompt=2, **FAST)


def test_an_encoder_is_named(pipeline):
    with torch.no_grad():
        pipeline.vae.encoder.conv_in.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the vae made them .* as in encoder.conv_in.bias"):
        pipeline.encode_audio(np.zeros(900), 8000)


def test_latents_are_checked_too(pipeline):
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"the unet made them of numbers in step 1"):
        pipeline("drums", output_type="latent", **FAST)


def test_float16_that_is_too_narrow_is_said(tiny_folder):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder, torch_dtype=torch.float16)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        pipeline.unet.conv_in.weight.mul_(30_000)
        pipeline.unet.conv_out.weight.fill_(60_000)
    with pytest.raises(ValueError, match=r"the unet made them .* float16 is too narrow for it: load it in torch"):
        pipeline(prompt_embeds=torch.eye(24)[:1], guidance_scale=1, **FAST)


def test_what_changes_predictions_and_latents_is_named(tiny_pipeline):
    with pytest.raises(
        ValueError, match=r"in step 2: .* were numbers, what DDIMScheduler or correct or a callback made"
    ):
        tiny_pipeline("drums", correct=lambda prediction, *_: prediction * float("nan"), **FAST)

    def spoil(pipe, i, t, tensors):
        return {"latents": tensors["latents"] * float("inf")} if i == 2 else {}

    with pytest.raises(ValueError, match=r"in the last step: the unet's predictions were numbers"):
        tiny_pipeline("drums", callback_on_step_end=spoil, **FAST)
