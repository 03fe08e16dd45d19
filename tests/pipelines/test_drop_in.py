"""Habits of diffusers' users: what they do with a pipeline works here as there."""

import copy
import logging

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback, SDXLCFGCutoffCallback
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import ClapConfig, ClapModel, SpeechT5HifiGan

from musicldm import MusicLDMPipeline
from musicldm.models.clap import clap_feature_extractor, embed_audio
from musicldm.models.loading import PARTS

FAST = {"num_inference_steps": 3, "audio_length_in_s": 0.16, "seed": 0}
LONG = FAST | {"audio_length_in_s": 0.64}
PROMPTS = ["drums", "a slow waltz"]


@pytest.fixture
def pipeline(tiny_parts):
    """One with a UNet of its own."""
    pipeline = MusicLDMPipeline(**tiny_parts | {"unet": copy.deepcopy(tiny_parts["unet"])})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def processors(unet) -> set[type]:
    return {type(processor) for processor in unet.attn_processors.values()}


# ---- attention


def test_a_pipeline_leaves_diffusers_processors_in_place(pipeline):
    plain = pipeline(PROMPTS, **LONG).audios
    assert processors(pipeline.unet) == {AttnProcessor2_0}
    limited = pipeline(PROMPTS, cross_attention_kwargs={"window": 1}, **LONG).audios
    assert processors(pipeline.unet) == {AttnProcessor2_0}
    assert np.abs(limited - plain).max() > 1e-4
    pipeline.unet.set_default_attn_processor()
    assert processors(pipeline.unet) == {AttnProcessor}
    assert np.abs(pipeline(PROMPTS, **LONG).audios - plain).max() < 1e-4
    again = pipeline(PROMPTS, cross_attention_kwargs={"window": 1}, **LONG).audios
    assert np.array_equal(again, limited)


@pytest.mark.parametrize("size", ["auto", "max", 1])
def test_attention_can_be_sliced(pipeline, size):
    plain = pipeline(PROMPTS, **FAST).audios
    pipeline.enable_attention_slicing(size)
    assert np.abs(pipeline(PROMPTS, **FAST).audios - plain).max() < 1e-4
    with pytest.raises(ValueError, match="knows no window"):
        pipeline(PROMPTS, cross_attention_kwargs={"window": 1}, **FAST)
    pipeline.disable_attention_slicing()
    assert np.abs(pipeline(PROMPTS, **FAST).audios - plain).max() < 1e-4


def test_projections_are_fused_and_parted(pipeline):
    pipeline.vae = copy.deepcopy(pipeline.vae)
    pipeline.unfuse_qkv_projections()  # nothing to do
    plain, names = pipeline(PROMPTS, **FAST).audios, set(pipeline.unet.state_dict())
    pipeline.fuse_qkv_projections()
    assert any(hasattr(module, "to_qkv") for module in pipeline.unet.modules())
    assert (pipeline.fusing_unet, pipeline.fusing_vae) == (True, True)
    assert np.abs(pipeline(PROMPTS, **FAST).audios - plain).max() < 1e-4
    pipeline.unfuse_qkv_projections(vae=False)
    assert (pipeline.fusing_unet, pipeline.fusing_vae) == (False, True)
    pipeline.unfuse_qkv_projections()
    assert set(pipeline.unet.state_dict()) == names
    assert processors(pipeline.unet) == {AttnProcessor2_0}
    assert np.array_equal(pipeline(PROMPTS, **FAST).audios, plain)


def test_freeu_comes_and_goes(pipeline):
    plain = pipeline("drums", **FAST).audios
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert np.abs(pipeline("drums", **FAST).audios - plain).max() > 1e-5
    pipeline.disable_freeu()
    assert np.array_equal(pipeline("drums", **FAST).audios, plain)


# ---- callbacks


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_official_callbacks_end_the_guidance(pipeline, prompts):
    callback = SDCFGCutoffCallback(cutoff_step_ratio=0.4)  # int(3 * 0.4): after the second step
    made = pipeline(prompts, callback_on_step_end=callback, **FAST).audios

    def by_hand(pipe, i, t, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"][-len(prompts) :]} if i == 1 else {}

    names = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    assert np.array_equal(made, pipeline(prompts, callback_on_step_end=by_hand, **names, **FAST).audios)
    assert np.abs(made - pipeline(prompts, **FAST).audios).max() > 1e-5
    several = MultiPipelineCallbacks([callback])
    assert np.array_equal(made, pipeline(prompts, callback_on_step_end=several, **FAST).audios)
    with pytest.raises(ValueError, match=r"can be of latents, prompt_embeds, got \['add_text_embeds'"):
        pipeline(prompts, callback_on_step_end=SDXLCFGCutoffCallback(), **FAST)


def test_a_callback_reads_and_sets_the_guidance_scale(pipeline):
    seen = []

    def stronger(pipe, i, t, tensors):
        seen.append((pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.num_timesteps, pipe.interrupt))
        pipe._guidance_scale += 1.0
        return tensors

    made = pipeline("drums", guidance_scale=2.0, callback_on_step_end=stronger, **FAST).audios
    assert seen == [(2.0, True, 3, False), (3.0, True, 3, False), (4.0, True, 3, False)]
    assert (pipeline.guidance_scale, pipeline.num_timesteps) == (5.0, 3)  # of the run that ended

    def by_property(pipe, i, t, tensors):
        pipe.guidance_scale = 3.0 + i
        return {}

    assert np.array_equal(made, pipeline("drums", callback_on_step_end=by_property, **FAST).audios)
    assert np.abs(made - pipeline("drums", guidance_scale=2.0, **FAST).audios).max() > 1e-5
    assert not np.array_equal(made, pipeline("drums", guidance_scale=4.0, **FAST).audios)


@pytest.mark.parametrize(("scale", "message"), [(3.0, "cannot become 3.0 in a run without guidance"), ("3", "'3'")])
def test_a_guidance_scale_that_cannot_be_is_refused(pipeline, scale, message):
    def change(pipe, i, t, tensors):
        pipe._guidance_scale = scale
        return {}

    with pytest.raises(ValueError, match=f"guidance_scale .*{message}"):
        pipeline("drums", guidance_scale=1.0, callback_on_step_end=change, **FAST)


# ---- parts


def test_prompts_are_encoded_by_their_parts_alone(tiny_parts, pipeline):
    alone = MusicLDMPipeline(
        **dict.fromkeys(PARTS) | {name: tiny_parts[name] for name in ("text_encoder", "tokenizer")}
    )
    prompt_embeds, negative_prompt_embeds = alone.encode_prompt(PROMPTS, "loud")
    without = MusicLDMPipeline(**tiny_parts | dict.fromkeys(("text_encoder", "tokenizer", "feature_extractor")))
    without.set_progress_bar_config(disable=True)
    embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
    assert np.array_equal(without(**embeds, **FAST).audios, pipeline(PROMPTS, negative_prompt="loud", **FAST).audios)
    for call, missing in (
        (lambda: alone("drums", **FAST), "no unet and no scheduler and no vae and no vocoder"),
        (lambda: alone.encode_audio(np.zeros(900), 8000), "no vae and no vocoder"),
        (lambda: alone.decode_latents(torch.zeros(1, 4, 8, 4)), "no vae and no vocoder"),
        (lambda: alone.vocode(torch.zeros(1, 8, 16)), "no vocoder"),
        (lambda: alone.load_lora_weights({}), "no unet"),
        (lambda: alone.save_pretrained("nowhere"), "without vae, unet, scheduler, vocoder"),
    ):
        with pytest.raises(ValueError, match=missing):
            call()


@pytest.mark.parametrize("name", ["vae", "unet", "scheduler", "vocoder"])
def test_any_part_may_be_missing_and_is_named(tiny_parts, tiny_folder, name):
    pipeline = MusicLDMPipeline(**tiny_parts | {name: None})
    with pytest.raises(ValueError, match=f"the pipeline has no {name}, which this needs; set pipeline.{name}"):
        pipeline("drums", **FAST)
    loaded = MusicLDMPipeline.from_pretrained(tiny_folder, **{name: None})
    assert getattr(loaded, name) is None
    setattr(loaded, name, tiny_parts[name])
    loaded.set_progress_bar_config(disable=True)
    if name != "vae":  # whose factor is read at construction
        assert np.isfinite(loaded("drums", **FAST).audios).all()


def test_a_pipeline_of_the_components_is_the_same(pipeline):
    other = MusicLDMPipeline(**pipeline.components)
    other.set_progress_bar_config(disable=True)
    assert np.array_equal(other("drums", **FAST).audios, pipeline("drums", **FAST).audios)
    (audios,) = pipeline("drums", return_dict=False, **FAST)
    assert np.array_equal(audios, pipeline("drums", **FAST).audios)


def test_decoding_in_slices_and_tiles(pipeline):
    pipeline.vae = copy.deepcopy(pipeline.vae)
    plain = pipeline(PROMPTS, **LONG).audios
    pipeline.enable_vae_slicing()
    assert pipeline.vae.use_slicing
    assert np.abs(pipeline(PROMPTS, **LONG).audios - plain).max() < 1e-4
    pipeline.disable_vae_slicing()
    pipeline.enable_vae_tiling()
    pipeline.vae.tile_latent_min_size, pipeline.vae.tile_sample_min_size = 8, 8 * pipeline.vae_scale_factor
    tiled = pipeline(PROMPTS, **LONG).audios
    assert tiled.shape == plain.shape
    assert not np.array_equal(tiled, plain)
    pipeline.disable_vae_tiling()
    assert not pipeline.vae.use_slicing
    assert np.array_equal(pipeline(PROMPTS, **LONG).audios, plain)


def test_all_schedulers_one_after_another(pipeline):
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    for kind in KarrasDiffusionSchedulers:
        pipeline.scheduler = getattr(diffusers, kind.name).from_config(pipeline.scheduler.config)
        audios = pipeline("drums", **FAST | {"num_inference_steps": 5}).audios
        assert audios.shape == (1, 1280), kind.name
        assert np.isfinite(audios).all(), kind.name


def test_a_vocoder_of_other_sizes_takes_the_place(pipeline):
    config = copy.deepcopy(pipeline.vocoder.config)
    config.model_in_dim *= 2
    plain = pipeline("drums", **FAST).audios
    pipeline.vocoder = SpeechT5HifiGan(config)
    with pytest.raises(ValueError, match=r"takes 32 mel bands .* names 16"):
        pipeline("drums", **FAST)
    config.mel = None
    pipeline.vocoder = SpeechT5HifiGan(config)
    audios = pipeline("drums", **FAST).audios
    assert audios.shape == plain.shape
    assert np.isfinite(audios).all()


def test_pipelines_are_made_from_another(pipeline):
    other = MusicLDMPipeline.from_pipe(pipeline, scheduler=diffusers.EulerDiscreteScheduler())
    assert other.unet is pipeline.unet
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    same = MusicLDMPipeline.from_pipe(pipeline)
    for each in (same, other):
        each.set_progress_bar_config(disable=True)
    assert np.isfinite(other("drums", **FAST).audios).all()
    assert np.array_equal(same("drums", **FAST).audios, pipeline("drums", **FAST).audios)


# ---- loading and moving


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_pipeline_is_moved_by_either_name_of_the_dtype(tiny_folder, name):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    assert pipeline.to("cpu", **{name: torch.bfloat16}) is pipeline
    assert {getattr(pipeline, part).dtype for part in ("unet", "vae", "text_encoder", "vocoder")} == {torch.bfloat16}
    with pytest.raises(ValueError, match="two names of one argument"):
        pipeline.to(dtype=torch.float32, torch_dtype=torch.float32)


@pytest.mark.parametrize("place", ["cpu", torch.device("cpu"), "meta", "balanced"])
def test_loading_onto_a_device(tiny_folder, place):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder, device_map=place, low_cpu_mem_usage=True)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    assert pipeline.device.type == torch.device(accelerator if place == "balanced" else place).type


@pytest.mark.parametrize("place", ["nowhere", {"unet": "cpu"}, 3])
def test_a_device_that_is_none_is_refused(tiny_folder, place):
    with pytest.raises(ValueError, match="device_map must be a device"):
        MusicLDMPipeline.from_pretrained(tiny_folder, device_map=place)


def test_loading_tells_of_the_parts_when_diffusers_is_to(tiny_folder):
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    messages, level = [], logger.level
    watch = logging.Handler()
    watch.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(watch)
    try:
        MusicLDMPipeline.from_pretrained(tiny_folder)
        assert not messages
        logger.setLevel(logging.INFO)
        MusicLDMPipeline.from_pretrained(tiny_folder)
    finally:
        logger.setLevel(level)
        logger.removeHandler(watch)
    assert [message.split()[1] for message in messages] == list(PARTS)


def test_texts_can_be_padded_to_the_tokenizers_limit(tiny_folder, tiny_parts, pipeline):
    loaded = MusicLDMPipeline.from_pretrained(tiny_folder)
    clap, tokenizer = loaded.text_encoder, loaded.tokenizer
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    tokens = tokenizer(PROMPTS, max_length=tokenizer.model_max_length, **options)
    with torch.no_grad():
        embeds = clap.get_text_features(**tokens)  # an output object or a tensor, by the version of transformers
    expected, _ = pipeline.encode_prompt(PROMPTS, guided=False)
    torch.testing.assert_close(getattr(embeds, "pooler_output", embeds), expected, atol=1e-5, rtol=1e-4)
    loaded.set_progress_bar_config(disable=True)
    audios = loaded(prompt_embeds=embeds, **FAST).audios
    assert np.abs(audios - pipeline(PROMPTS, **FAST).audios).max() < 1e-3
    given = MusicLDMPipeline.from_pretrained(tiny_folder, tokenizer=tiny_parts["tokenizer"]).tokenizer
    assert given.model_max_length > 10**9  # used as it is


# ---- CLAP


def four_channels(clap: ClapModel, fusion: bool = False) -> ClapModel:
    config = ClapConfig.from_dict(clap.config.to_dict())
    config.audio_config.patch_embed_input_channels, config.audio_config.enable_fusion = 4, fusion
    torch.manual_seed(0)
    return ClapModel(config).eval()


def test_a_tower_of_four_channels_ranks(tiny_parts, pipeline):
    pipeline.text_encoder = four_channels(tiny_parts["text_encoder"])
    output = pipeline("drums", num_waveforms_per_prompt=3, **FAST)
    assert output.scores.shape == (1, 3)
    assert np.isfinite(output.scores).all()


@torch.no_grad()
def test_a_tower_of_four_channels_hears_what_transformers_gives_it(tiny_parts):
    clap = four_channels(tiny_parts["text_encoder"])
    extractor = clap_feature_extractor(16_000, 0.5, n_fft=512, hop_length=160, n_mels=16, f_max=8000.0, fusion=True)
    waveform = 0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    theirs = extractor(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt")["input_features"]
    assert theirs.shape[1] == 4
    expected = clap.get_audio_features(input_features=theirs).pooler_output
    torch.testing.assert_close(embed_audio(clap, extractor, waveform, 16_000), expected, atol=1e-4, rtol=1e-4)
