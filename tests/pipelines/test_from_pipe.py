"""Pipelines made of others: the same parts, as they are."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

from musicldm import (
    MusicLDMAudioToAudioPipeline,
    MusicLDMInpaintPipeline,
    MusicLDMLongFormPipeline,
    MusicLDMPipeline,
)
from musicldm.models.loading import PARTS
from musicldm.pipelines.optimize import prepare_launches

CLASSES = (MusicLDMPipeline, MusicLDMAudioToAudioPipeline, MusicLDMInpaintPipeline, MusicLDMLongFormPipeline)
FAST = {"num_inference_steps": 2, "seed": 0}


@pytest.fixture
def pipeline(tiny_folder):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weights(pipeline) -> list:
    return [
        (name, place.data_ptr(), place.dtype, place.device)
        for part in ("unet", "vae", "vocoder", "text_encoder")
        for name, place in getattr(pipeline, part).named_parameters()
    ]


@pytest.mark.parametrize(("first", "then"), list(itertools.permutations(CLASSES, 2)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_are_shared_as_they_are(tiny_folder, first, then, dtype):
    one = first.from_pretrained(tiny_folder, torch_dtype=dtype)
    before, settings = weights(one), dict(vars(one))
    other = then.from_pipe(one)
    assert type(other) is then
    assert all(getattr(other, name) is getattr(one, name) for name in PARTS)
    assert weights(one) == before == weights(other)
    assert vars(one) == settings
    assert other.config["_name_or_path"] == one.config["_name_or_path"]
    assert {name: other.config[name] for name in PARTS} == {name: one.config[name] for name in PARTS}


def test_an_optimized_pipeline_stays_one(pipeline):
    expected = pipeline.optimize(bfloat16=True)("drums", 0.16, **FAST).audios
    other = MusicLDMAudioToAudioPipeline.from_pipe(pipeline)
    assert other.unet.dtype == torch.bfloat16
    assert np.array_equal(pipeline("drums", 0.16, **FAST).audios, expected)
    audio = np.sin(np.arange(1280) / 3)
    assert np.array_equal(other("drums", audio, 8000, 1.0, **FAST).audios, expected)


def test_recorded_steps_serve_both(pipeline):
    recorded = []

    def record(function):
        recorded.append(result := function())
        return lambda: result.copy_(function()), result

    prepare_launches(pipeline, record)
    expected = pipeline("drums", 0.16, **FAST).audios
    other = MusicLDMAudioToAudioPipeline.from_pipe(pipeline)
    made = other("drums", np.sin(np.arange(1280) / 3), 8000, 1.0, **FAST).audios
    assert len(recorded) == 1
    assert np.array_equal(made, expected)


def test_what_belongs_to_the_model_comes_along(pipeline, tmp_path):
    (tmp_path / "novelty_index").mkdir()
    pipeline.card, pipeline.companions = "# Mine\n", {"novelty_index": tmp_path / "novelty_index"}
    pipeline.card_sections["Data"] = "my own"
    other = MusicLDMInpaintPipeline.from_pipe(pipeline)
    assert other.companion("novelty_index") == tmp_path / "novelty_index"
    assert (other.card, other.card_sections) == ("# Mine\n", {"Data": "my own"})
    other.card_sections["More"] = "not of the first"
    assert "More" not in pipeline.card_sections
    pipeline("drums", 0.16, guidance_scale=3.0, **FAST)
    assert other.guidance_scale == 1.0  # its own runs are told of
    other.save_pretrained(tmp_path / "saved")
    assert "Mine" in (tmp_path / "saved" / "README.md").read_text()
    loaded = MusicLDMPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(loaded("drums", 0.16, **FAST).audios, pipeline("drums", 0.16, **FAST).audios)


def test_another_network_has_no_card_of_this_one(pipeline, tiny_folder):
    pipeline.card = "# Mine\n"
    unet = MusicLDMPipeline.from_pretrained(tiny_folder).unet
    other = MusicLDMAudioToAudioPipeline.from_pipe(pipeline, unet=unet)
    assert other.unet is unet is not pipeline.unet
    assert other.card is None


def test_adapters_are_those_of_the_network(pipeline):
    pytest.importorskip("peft")
    from musicldm.config import LoraConfig
    from musicldm.models.adapters import add_adapter

    add_adapter(pipeline.unet, LoraConfig(rank=2))
    other = MusicLDMAudioToAudioPipeline.from_pipe(pipeline)
    assert other.get_active_adapters() == pipeline.get_active_adapters()


def test_each_has_its_scheduler_once_it_is_set(pipeline):
    other = MusicLDMAudioToAudioPipeline.from_pipe(pipeline)
    other.scheduler = DPMSolverMultistepScheduler.from_config(other.scheduler.config)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    third = MusicLDMPipeline.from_pipe(pipeline, scheduler=other.scheduler, tokenizer=None)
    assert third.scheduler is other.scheduler
    assert third.tokenizer is None


def test_what_is_no_part_is_refused(pipeline, tiny_parts):
    with pytest.raises(TypeError, match=r"takes parts by name .*got \['device'\]"):
        MusicLDMAudioToAudioPipeline.from_pipe(pipeline, device="cpu")
    with pytest.raises(ValueError, match=r"shared in torch\.float32, got dtype torch\.float16; cast them"):
        MusicLDMAudioToAudioPipeline.from_pipe(pipeline, torch_dtype=torch.float16)
    assert MusicLDMAudioToAudioPipeline.from_pipe(pipeline, dtype=torch.float32).unet is pipeline.unet
    with pytest.raises(ValueError, match="pipeline must be a pipeline"):
        MusicLDMAudioToAudioPipeline.from_pipe("mini")
    with pytest.raises(ValueError, match="unet must be a UNet2DConditionModel"):
        MusicLDMPipeline.from_pipe(pipeline, unet="small")


def test_of_diffusers_own_pipelines(tiny_parts):
    names = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    shared = {name: tiny_parts[name] for name in ("vae", "unet", "scheduler")}
    stable = StableDiffusionPipeline(**shared, **dict.fromkeys(names), requires_safety_checker=False)
    made = MusicLDMPipeline.from_pipe(stable, vocoder=tiny_parts["vocoder"])
    assert made.unet is tiny_parts["unet"]
    assert made.text_encoder is None
