"""What the pipeline makes of its arguments: lengths, seeds, candidates, texts, callbacks, number formats, devices."""

import warnings

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload
from diffusers import AudioPipelineOutput, DPMSolverMultistepScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musicldm.models.clap import embed_audio, embed_text
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling import Condition, Guidance
from musicldm.sampling.schedulers import SCHEDULERS, make_scheduler

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),
]

FAST = {"num_inference_steps": 2, "audio_length_in_s": 0.16}
STEP = 2.0**-23  # between float32 numbers near 1: waveforms computed in float64 are handed out in these


@pytest.fixture
def counted(tiny_pipeline, monkeypatch):
    """The tiny pipeline and a record of the rows that its CLAP and its UNet were given, call by call."""
    rows = {"text": [], "unet": []}
    embed = tiny_pipeline.text_encoder.get_text_features

    def count_texts(**tokens):
        rows["text"].append(tuple(tokens["input_ids"].shape))
        return embed(**tokens)

    monkeypatch.setattr(tiny_pipeline.text_encoder, "get_text_features", count_texts)
    hook = tiny_pipeline.unet.register_forward_pre_hook(lambda _, inputs: rows["unet"].append(len(inputs[0])))
    yield tiny_pipeline, rows
    hook.remove()


# ---- output


def test_output_names_audios_rate_and_scores(tiny_pipeline):
    output = tiny_pipeline("a waltz", **FAST)
    assert isinstance(output, AudioPipelineOutput)
    assert output.audios.shape == (1, 1280)
    assert output.audios.dtype == np.float32
    assert output.sampling_rate == 8000
    assert output.scores is None
    assert output[0] is output.audios
    (audios,) = tiny_pipeline("a waltz", return_dict=False, **FAST)
    assert audios.shape == (1, 1280)


def test_output_types_hold_the_same(tiny_pipeline):
    arrays, tensors, latents = (
        tiny_pipeline("a waltz", seed=1, output_type=kind, **FAST).audios for kind in ("np", "pt", "latent")
    )
    assert np.array_equal(arrays, tensors.numpy())
    assert latents.shape == (1, 4, 4, 4)
    waveform = tiny_pipeline.vocoder(tiny_pipeline.decode_latents(latents))
    torch.testing.assert_close(waveform[:, :1280], tensors)


# ---- length


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seconds=st.floats(0.1, 1.5))
def test_any_length_is_exact_to_the_sample(tiny_pipeline, seconds):
    audios = tiny_pipeline("a waltz", seconds, num_inference_steps=1, guidance_scale=1).audios
    assert audios.shape == (1, round(seconds * 8000))
    assert np.isfinite(audios).all()


@pytest.mark.parametrize(("seconds", "n_samples"), [(0.01, 80), (0.1, 800), (0.29, 2320), (0.57, 4560), (1.1, 8800)])
def test_length_is_rounded_not_cut(tiny_pipeline, seconds, n_samples):
    assert tiny_pipeline("", seconds, num_inference_steps=1, guidance_scale=1).audios.shape == (1, n_samples)


def test_default_length_is_what_the_unet_was_trained_on(tiny_pipeline):
    assert tiny_pipeline("a waltz", num_inference_steps=1).audios.shape == (1, 8 * 4 * 80)


def test_a_length_only_cuts_the_end(tiny_pipeline):
    long, short = (tiny_pipeline("a waltz", s, num_inference_steps=2, seed=0).audios for s in (0.16, 0.123))
    assert np.array_equal(long[:, :984], short)


@pytest.mark.parametrize("seconds", [0, -1, 0.005, float("nan"), float("inf"), "10", True])
def test_impossible_length_is_refused(tiny_pipeline, seconds):
    with pytest.raises(ValueError, match=f"audio_length_in_s must be .*{seconds}"):
        tiny_pipeline("a waltz", seconds)


@pytest.mark.parametrize("seconds", [1e7, 1e300])
def test_absurd_length_is_refused_with_the_memory_it_needs(tiny_pipeline, seconds):
    with pytest.raises(ValueError, match=r"1 waveform.* GiB of memory, there are .* GiB; ask for at most about"):
        tiny_pipeline("a waltz", seconds)


# ---- seeds


def run_batch(pipeline: MusicLDMPipeline, prompts: list[str], **arguments) -> np.ndarray:
    return pipeline(prompts, audio_length_in_s=0.16, num_inference_steps=4, **arguments).audios


@pytest.mark.parametrize("name", SCHEDULERS)
def test_seeded_waveform_does_not_depend_on_the_batch(exact_pipeline, name):
    exact_pipeline.scheduler = make_scheduler(name, exact_pipeline.scheduler)
    together = run_batch(exact_pipeline, ["a waltz", "drums", "a flute"], seed=7, eta=1.0)
    alone = run_batch(exact_pipeline, ["a flute"], seed=9, eta=1.0)
    assert np.abs(together[2] - alone[0]).max() <= STEP
    assert np.abs(together[1] - together[2]).max() > 1e-2


def test_brownian_sampler_follows_the_seed_too(exact_pipeline):
    from diffusers import DPMSolverSDEScheduler

    exact_pipeline.scheduler = DPMSolverSDEScheduler.from_config(exact_pipeline.scheduler.config)
    together = run_batch(exact_pipeline, ["a waltz", "drums"], seed=7)
    alone = run_batch(exact_pipeline, ["drums"], seed=8)
    assert np.abs(together[1] - alone[0]).max() <= STEP
    assert np.abs(alone - run_batch(exact_pipeline, ["drums"], seed=9)).max() > 1e-2


def test_a_list_of_generators_is_a_seed_by_hand(tiny_pipeline):
    generators = [torch.Generator("cpu").manual_seed(3 + i) for i in range(2)]
    by_hand = run_batch(tiny_pipeline, ["a waltz", "drums"], generator=generators, eta=1.0)
    assert np.array_equal(by_hand, run_batch(tiny_pipeline, ["a waltz", "drums"], seed=3, eta=1.0))


def test_candidates_count_as_items_of_the_batch(exact_pipeline):
    latents = exact_pipeline(["a waltz", "drums"], num_waveforms_per_prompt=2, seed=3, output_type="latent", **FAST)
    alone = exact_pipeline("drums", seed=6, output_type="latent", **FAST)
    torch.testing.assert_close(latents.audios[3], alone.audios[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1, "generator": torch.Generator()}, "either seed or generator"),
        ({"seed": -1}, "seed must be a whole number from 0 .* got -1"),
        ({"seed": 1.5}, "seed must be a whole number from 0 .* got 1.5"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 waveforms"),
    ],
)
def test_unclear_randomness_is_refused(tiny_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline("a waltz", **FAST, **arguments)


# ---- texts


def test_each_distinct_text_is_embedded_once_and_padded_to_the_longest(counted):
    pipeline, rows = counted
    prompts = ["drums", "a slow waltz for solo piano", "drums"]
    pipeline(prompts, num_waveforms_per_prompt=2, output_type="latent", **FAST)
    longest = max(len(ids) for ids in pipeline.tokenizer(prompts)["input_ids"])
    assert rows["text"] == [(3, longest)]  # two prompts and the empty text
    assert rows["unet"] == [12, 12]


@pytest.mark.parametrize("guidance_scale", [1.0, 0.5])
def test_without_guidance_half_the_work_is_done(counted, guidance_scale):
    pipeline, rows = counted
    pipeline(["drums", "a flute"], guidance_scale=guidance_scale, negative_prompt="noise", **FAST)
    assert [shape[0] for shape in rows["text"]] == [2]
    assert rows["unet"] == [2, 2]


def test_guidance_is_left_out_outside_of_its_interval(counted):
    pipeline, rows = counted
    options = {"num_inference_steps": 5, "audio_length_in_s": 0.16, "seed": 0, "guidance_scale": 7.0}
    pipeline("drums", guidance_interval=(0.2, 0.8), **options)  # steps at 801, 601, 401, 201 and 1 of 1000
    assert rows["unet"] == [1, 2, 2, 2, 1]
    nowhere = pipeline("drums", guidance_interval=(0.9, 1.0), **options).audios
    unguided = pipeline("drums", **options | {"guidance_scale": 1.0}).audios
    np.testing.assert_allclose(nowhere, unguided, atol=1e-5)
    everywhere = pipeline("drums", guidance_interval=(0.0, 1.0), **options).audios
    assert np.array_equal(everywhere, pipeline("drums", **options).audios)
    assert np.abs(everywhere - unguided).max() > 1e-3


def test_prompts_are_heard_and_equal_their_embeddings(exact_pipeline):
    prompts, negatives = ["drums", "a flute"], ["noise", "hum"]
    audios = exact_pipeline(prompts, negative_prompt=negatives, seed=0, **FAST).audios
    embeds = [
        embed_text(exact_pipeline.text_encoder, exact_pipeline.tokenizer, texts) for texts in (prompts, negatives)
    ]
    given = exact_pipeline(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], seed=0, **FAST).audios
    np.testing.assert_allclose(audios, given, atol=STEP)
    other = exact_pipeline(["drums", "a slow waltz"], negative_prompt=negatives, seed=0, **FAST).audios
    assert np.abs(audios[1] - other[1]).max() > 1e-2


def test_one_negative_prompt_serves_all_and_the_empty_one_is_the_default(tiny_pipeline):
    prompts = ["drums", "a flute"]
    shared, listed, default, empty = (
        tiny_pipeline(prompts, negative_prompt=negative, seed=0, **FAST).audios
        for negative in ("noise", ["noise", "noise"], None, "")
    )
    assert np.array_equal(shared, listed)
    assert np.array_equal(default, empty)
    assert np.abs(shared - empty).max() > 1e-3


def test_the_empty_prompt_is_allowed(tiny_pipeline):
    assert tiny_pipeline("", **FAST).audios.shape == (1, 1280)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either prompt or prompt_embeds, got neither"),
        ({"prompt": "a", "prompt_embeds": torch.ones(1, 24)}, "either prompt or prompt_embeds, got both"),
        ({"prompt": []}, r"prompt must be a string or a list of at least one, got \[\]"),
        ({"prompt": ["a", 3]}, r"prompt must be a string or a list .*3"),
        ({"prompt": 3}, "prompt must be a string or a list .*3"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "1 negative prompts for 2 prompts"),
        ({"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": torch.ones(1, 24)}, "got both"),
        ({"prompt_embeds": torch.ones(1, 23)}, r"prompt_embeds must be \(prompts, 24\), got shape \(1, 23\)"),
        ({"prompt_embeds": torch.ones(24)}, r"prompt_embeds must be \(prompts, 24\), got shape \(24,\)"),
        ({"prompt": "a", "negative_prompt_embeds": torch.ones(2, 24)}, "has 2 rows for 1 prompts"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps must be .* at least 1, got 0"),
        ({"prompt": "a", "num_inference_steps": 2.5}, "num_inference_steps must be a whole number .* got 2.5"),
        ({"prompt": "a", "num_inference_steps": 10**9}, "1000000000 exceeds the 1000 steps"),
        ({"prompt": "a", "num_inference_steps": 1000}, "start from step 1000, beyond the training's 999"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale must be a finite number, got nan"),
        ({"prompt": "a", "guidance_interval": (0.8, 0.2)}, r"guidance_interval must be .* got \(0.8, 0.2\)"),
        ({"prompt": "a", "guidance_interval": (0.2, 20)}, "guidance_interval must be two shares of the noise"),
        ({"prompt": "a", "eta": 1.5}, "eta must be from 0 .* got 1.5"),
        ({"prompt": "a", "num_waveforms_per_prompt": 0}, "num_waveforms_per_prompt must be .* got 0"),
        ({"prompt": "a", "num_waveforms_per_prompt": None}, "num_waveforms_per_prompt must be .* got None"),
        ({"prompt": "a", "callback_steps": 0}, "callback_steps must be .* got 0"),
        ({"prompt": "a", "output_type": "wav"}, "output_type must be one of np, pt, latent, got 'wav'"),
        ({"prompt": "a", "return_best": 2}, "return_best=2 of 1 candidates"),
        ({"prompt": "a", "callback_on_step_end_tensor_inputs": ["mel"]}, "latents, prompt_embeds, got .'mel'."),
        ({"prompt": "a", "latents": torch.ones(1, 4, 8, 5)}, r"latents of shape \(1, 4, 8, 4\), got \(1, 4, 8, 5\)"),
        (
            {"prompt": "a", "num_waveforms_per_prompt": 3, "return_best": 1, "output_type": "latent"},
            "latents are not ranked",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(tiny_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**arguments)


# ---- candidates


def test_candidates_are_ranked_within_each_prompt(tiny_pipeline):
    prompts = ["drums", "a slow waltz"]
    output = tiny_pipeline(prompts, num_waveforms_per_prompt=4, seed=0, output_type="pt", **FAST)
    assert output.audios.shape == (8, 1280)
    assert output.scores.shape == (2, 4)
    assert (output.scores.diff(dim=1) < 0).all()
    wanted = embed_text(tiny_pipeline.text_encoder, tiny_pipeline.tokenizer, prompts)
    heard = embed_audio(tiny_pipeline.text_encoder, tiny_pipeline.feature_extractor, output.audios, 8000)
    similarity = torch.einsum("pnd,pd->pn", heard.view(2, 4, -1), wanted)
    torch.testing.assert_close(output.scores, similarity, atol=1e-5, rtol=0)

    for row, prompt in enumerate(prompts):  # the same four waveforms as without ranking
        for item in range(4):
            alone = tiny_pipeline(prompt, seed=4 * row + item, output_type="pt", **FAST).audios[0]
            ranked = output.audios[4 * row : 4 * row + 4]
            assert (ranked - alone).abs().amax(dim=1).min() <= 1e-4


def test_return_best_keeps_the_first_of_each_prompt(tiny_pipeline):
    arguments = {"num_waveforms_per_prompt": 3, "seed": 0} | FAST
    everything = tiny_pipeline(["drums", "a waltz"], **arguments)
    best = tiny_pipeline(["drums", "a waltz"], return_best=1, **arguments)
    assert np.array_equal(best.audios, everything.audios[[0, 3]])
    assert np.array_equal(best.scores, everything.scores[:, :1])


def test_candidates_of_embeddings_are_ranked_by_these(tiny_pipeline):
    embeds = embed_text(tiny_pipeline.text_encoder, tiny_pipeline.tokenizer, ["drums"])
    by_text = tiny_pipeline("drums", num_waveforms_per_prompt=3, seed=0, **FAST)
    by_embeds = tiny_pipeline(prompt_embeds=2 * embeds, num_waveforms_per_prompt=3, seed=0, **FAST)
    assert by_text.scores.shape == by_embeds.scores.shape == (1, 3)
    assert not np.array_equal(by_text.audios, by_embeds.audios)  # the UNet is given the vector as it is
    assert np.abs(by_embeds.scores).max() <= 1 + 1e-5  # while similarity is of directions


def test_candidates_are_not_ranked_without_a_front_end(tiny_pipeline):
    pipeline = MusicLDMPipeline(**tiny_pipeline.components | {"feature_extractor": None})
    with pytest.warns(UserWarning, match="not ranked: that needs text_encoder and feature_extractor"):
        output = pipeline("drums", num_waveforms_per_prompt=2, seed=0, **FAST)
    assert output.audios.shape == (2, 1280)
    assert output.scores is None
    with pytest.raises(ValueError, match="choosing the best needs text_encoder and feature_extractor"):
        pipeline("drums", num_waveforms_per_prompt=2, return_best=1, **FAST)


# ---- without a tokenizer, without CLAP


def test_without_a_tokenizer_embeddings_work_and_prompts_say_why_not(exact_pipeline):
    embeds = embed_text(exact_pipeline.text_encoder, exact_pipeline.tokenizer, ["drums"])
    pipeline = MusicLDMPipeline(**exact_pipeline.components | {"tokenizer": None})
    given = pipeline(prompt_embeds=embeds, seed=0, **FAST).audios  # guided by the empty text, which needs none
    np.testing.assert_allclose(given, exact_pipeline("drums", seed=0, **FAST).audios, atol=STEP)
    with pytest.raises(ValueError, match=r"no tokenizer for \['drums', ''\]; pass prompt_embeds"):
        pipeline("drums", **FAST)


def test_without_clap_embeddings_work_and_prompts_say_why_not(tiny_pipeline):
    without = {"text_encoder": None, "tokenizer": None, "feature_extractor": None}
    pipeline = MusicLDMPipeline(**tiny_pipeline.components | without)
    embeds = torch.eye(24)[:1]
    assert pipeline(prompt_embeds=embeds, guidance_scale=1, **FAST).audios.shape == (1, 1280)
    assert pipeline(prompt_embeds=embeds, negative_prompt_embeds=-embeds, **FAST).audios.shape == (1, 1280)
    with pytest.raises(ValueError, match=r"no text_encoder .* guidance_scale=1"):
        pipeline(prompt_embeds=embeds, **FAST)


# ---- callbacks


def test_callback_can_change_latents(tiny_pipeline):
    seen = []

    def silence(pipeline, step, timestep, tensors):
        seen.append((pipeline.unet is tiny_pipeline.unet, step, int(timestep), sorted(tensors), pipeline.num_timesteps))
        return {"latents": torch.zeros_like(tensors["latents"])}

    output = tiny_pipeline("drums", callback_on_step_end=silence, output_type="latent", **FAST)
    assert output.audios.abs().max() == 0
    assert seen == [(True, 0, 501, ["latents"], 2), (True, 1, 1, ["latents"], 2)]


def test_callback_can_end_guidance(counted):
    pipeline, rows = counted

    def unguided(_pipeline, step, timestep, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"][-1:]} if step == 0 else {}

    arguments = {"num_inference_steps": 3, "audio_length_in_s": 0.16}
    pipeline("drums", callback_on_step_end=unguided, callback_on_step_end_tensor_inputs=["prompt_embeds"], **arguments)
    assert rows["unet"] == [2, 1, 1]


def test_callback_can_interrupt(counted):
    pipeline, rows = counted

    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 1

    pipeline("drums", num_inference_steps=5, audio_length_in_s=0.16, callback_on_step_end=stop)
    assert len(rows["unet"]) == 2
    pipeline("drums", num_inference_steps=5, audio_length_in_s=0.16)
    assert len(rows["unet"]) == 7


def test_progress_bar_counts_steps(tiny_pipeline, capsys):
    tiny_pipeline.set_progress_bar_config(disable=False)
    tiny_pipeline("drums", **FAST)
    assert "2/2" in capsys.readouterr().err


# ---- the loop alone


def test_loop_runs_on_any_window_and_from_any_step(tiny_pipeline):
    """What inpainting and long music need: other sizes, a part of the steps, latents held by a mask."""
    wanted, unconditional = tiny_pipeline.encode_prompt("drums", None)
    tiny_pipeline.scheduler.set_timesteps(10)
    known = torch.full((1, 4, 6, 4), 0.5)
    keep = torch.zeros_like(known)
    keep[:, :, :2] = 1

    def hold(i, t, latents, condition):
        return keep * known + (1 - keep) * latents, condition

    with torch.no_grad():
        latents = tiny_pipeline.denoise(
            torch.randn(1, 4, 6, 4),
            Condition(torch.cat([unconditional, wanted])),
            tiny_pipeline.scheduler.timesteps[6:],
            Guidance(2.0),
            on_step=hold,
        )
    assert torch.equal(latents[:, :, :2], known[:, :, :2])
    assert (latents[:, :, 2:] - 0.5).abs().min() > 0


# ---- number formats and devices


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(tiny_folder, dtype):
    pipelines = [MusicLDMPipeline.from_pretrained(tiny_folder, torch_dtype=kind) for kind in (torch.float32, dtype)]
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
    full, half = (pipeline("drums", num_waveforms_per_prompt=2, seed=0, **FAST) for pipeline in pipelines)
    assert half.audios.dtype == np.float32
    assert half.scores.shape == (1, 2)
    full, half = (pipeline("drums", seed=0, output_type="latent", **FAST).audios for pipeline in pipelines)
    assert half.dtype == dtype
    assert (half.float() - full).norm() / full.norm() < 0.03


def test_float64_stays_float64(tiny_folder):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder, torch_dtype=torch.float64)
    output = pipeline("drums", seed=0, output_type="latent", **FAST)
    assert output.audios.dtype == torch.float64


def test_moving_returns_the_pipeline(tiny_folder):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder).to("cpu", torch.bfloat16)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.vocoder.dtype, pipeline.text_encoder.dtype} == {
        torch.bfloat16
    }
    assert np.isfinite(pipeline("drums", **FAST).audios).all()


def test_model_offload_moves_each_part_when_it_is_needed(tiny_folder, monkeypatch):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    expected = pipeline("drums", seed=0, num_waveforms_per_prompt=2, **FAST)
    names = {id(part): name for name, part in pipeline.components.items()}
    moved = []
    move = CpuOffload.pre_forward

    def note(hook, module, *args, **kwargs):
        moved.append(names[id(module)])
        return move(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", note)
    pipeline.enable_model_cpu_offload(device="cpu")
    for _ in range(2):  # the hooks are renewed after each call
        moved.clear()
        output = pipeline("drums", seed=0, num_waveforms_per_prompt=2, **FAST)
        np.testing.assert_allclose(output.audios, expected.audios, atol=1e-5)
        assert moved == ["text_encoder", "unet", "unet", "vae", "vae", "vocoder", "vocoder", "text_encoder"]


def test_parts_offloaded_layer_by_layer_give_the_same(tiny_folder):
    """Sequential offload on the CPU, which the pipeline's method refuses for want of an accelerator."""
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    expected = pipeline("drums", seed=0, num_waveforms_per_prompt=2, **FAST)
    for part in (pipeline.unet, pipeline.vae, pipeline.vocoder):
        cpu_offload(part, torch.device("cpu"))
    assert next(pipeline.unet.parameters()).device.type == "meta"
    output = pipeline("drums", seed=0, num_waveforms_per_prompt=2, **FAST)
    np.testing.assert_allclose(output.audios, expected.audios, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_on_a_gpu_gives_the_same(tiny_folder, method):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    expected = pipeline("drums", seed=0, num_waveforms_per_prompt=2, **FAST)
    getattr(pipeline, method)()
    for _ in range(2):
        output = pipeline("drums", seed=0, num_waveforms_per_prompt=2, **FAST)
        np.testing.assert_allclose(output.audios, expected.audios, atol=1e-3)


@pytest.mark.slow
def test_compiled_unet_gives_the_same_and_saves(tiny_folder, tmp_path):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    expected = pipeline("drums", seed=0, **FAST).audios
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    np.testing.assert_allclose(pipeline("drums", seed=0, **FAST).audios, expected, atol=1e-5)
    pipeline.save_pretrained(tmp_path)
    again = MusicLDMPipeline.from_pretrained(tmp_path)
    np.testing.assert_allclose(again("drums", seed=0, **FAST).audios, expected, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ddim", "euler-a", "dpm++-sde"])
def test_seeded_noise_is_the_same_on_every_device(tiny_folder, name):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.scheduler = make_scheduler(name, pipeline.scheduler)
    on_cpu = pipeline("drums", seed=0, eta=1.0, **FAST).audios
    np.testing.assert_allclose(pipeline.to("cuda")("drums", seed=0, eta=1.0, **FAST).audios, on_cpu, atol=1e-3)


def test_karras_schedulers_work_by_class(tiny_pipeline):
    tiny_pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        tiny_pipeline.scheduler.config, use_karras_sigmas=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert np.isfinite(tiny_pipeline("drums", **FAST).audios).all()


def test_more_candidates_than_fit_in_memory_are_refused_before_anything_is_made(tiny_pipeline):
    with pytest.raises(ValueError, match="memory"):
        tiny_pipeline("piano", num_waveforms_per_prompt=10**9, seed=0)
