"""Arguments of wrong kinds: each is refused by its name, by pipelines, copy guards and what else takes some."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from musicldm import MusicLDMPipeline
from musicldm.config.values import check_number, check_text, shown
from musicldm.generate import Request, Session
from musicldm.models.loading import PARTS

FAST = {"num_inference_steps": 2, "audio_length_in_s": 0.16}
NAN = torch.full((1, 24), float("nan"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ("a",)}, r"prompt must be a string or a list of at least one, got \('a',\)"),
        ({"prompt": ["a", 3]}, "prompt must be a string or a list"),
        ({"prompt": "cut \ud83c"}, r"prompt .* is no Unicode text: character 5 is the lone surrogate U\+D83C"),
        ({"prompt": "a", "negative_prompt": "cut \ud83c"}, "negative_prompt .* is no Unicode text"),
        ({"prompt": None, "prompt_embeds": [0.1] * 24}, r"prompt_embeds must be a tensor .* \(list\)"),
        ({"prompt": None, "prompt_embeds": np.zeros((1, 24))}, r"prompt_embeds must be a tensor .* \(ndarray\)"),
        (
            {"prompt": None, "prompt_embeds": torch.ones(1, 24, dtype=torch.int64)},
            "prompt_embeds must be .*, got torch.int64",
        ),
        ({"prompt": None, "prompt_embeds": NAN}, "prompt_embeds holds NaN"),
        ({"negative_prompt_embeds": "calm"}, "negative_prompt_embeds must be a tensor"),
        ({"generator": 7}, r"generator must be a torch.Generator.* got 7 \(int\)"),
        ({"generator": [3]}, "generator must be"),
        ({"generator": (torch.Generator(),)}, "generator must be"),
        ({"guidance_interval": None}, "guidance_interval must be two shares .* got None"),
        ({"guidance_interval": "01"}, "guidance_interval must be two shares"),
        ({"guidance_interval": (0.1, "b")}, "guidance_interval must be two shares"),
        ({"guidance_scale": "4"}, "guidance_scale must be a finite number, got '4'"),
        ({"guidance_scale": 10**400}, "guidance_scale must be a finite number"),
        ({"eta": None}, "eta must be a finite number"),
        ({"audio_length_in_s": "5"}, "audio_length_in_s must be a finite number"),
        ({"num_inference_steps": True}, "num_inference_steps must be a whole number"),
        ({"output_type": ["np"]}, "output_type must be one of np, pt, latent"),
        ({"return_dict": "no"}, "return_dict must be True or False"),
        ({"latents": np.zeros((1, 4, 4, 4))}, "latents must be a tensor"),
        ({"latents": torch.full((1, 4, 4, 4), float("inf"))}, "latents holds NaN or infinity"),
        ({"cross_attention_kwargs": 3}, "cross_attention_kwargs must be a dictionary"),
        ({"cross_attention_kwargs": {"window": "3"}}, r"cross_attention_kwargs\['window'\] must be a whole number"),
        ({"cross_attention_kwargs": {"scale": float("nan")}}, r"cross_attention_kwargs\['scale'\] must be a finite"),
        ({"callback": 3}, "callback must be a function, got 3"),
        ({"callback_on_step_end": "stop"}, "callback_on_step_end must be a function"),
        ({"callback_on_step_end_tensor_inputs": "latents"}, "tensor_inputs must be a list of names"),
        ({"callback_steps": None}, "callback_steps must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"return_best": "1"}, "return_best must be a whole number"),
        ({"correct": 3}, "correct must be a function"),
        ({"correct": lambda *_: None}, "correct must return a prediction of shape .* got None"),
    ],
)
def test_a_pipeline_names_what_it_cannot_use(tiny_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**{"prompt": "a"} | FAST | arguments)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda tensors: {"latents": tensors["latents"][:, :, :1]}, "returned latents of shape .* keep the shape"),
        (lambda tensors: {"latents": None}, "latents of callback_on_step_end must be a tensor"),
        (lambda tensors: {"prompt_embeds": tensors["prompt_embeds"][:, :3]}, "returned prompt_embeds of shape"),
        (lambda tensors: {"prompt_embeds": tensors["prompt_embeds"].repeat(3, 1)}, "returned prompt_embeds of shape"),
        (lambda tensors: 3, "what callback_on_step_end returns must be a dictionary"),
    ],
)
def test_a_callback_cannot_return_something_else(tiny_pipeline, returned, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(
            "a",
            callback_on_step_end=lambda pipe, i, t, tensors: returned(tensors),
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
            **FAST,
        )


def test_embeddings_may_be_what_clap_returns(tiny_pipeline):
    tensor = tiny_pipeline.embed_texts(["drums", "a slow waltz"])
    plain = tiny_pipeline(prompt_embeds=tensor, seed=0, **FAST).audios
    outputs = BaseModelOutputWithPooling(pooler_output=tensor)
    assert np.array_equal(tiny_pipeline(prompt_embeds=outputs, seed=0, **FAST).audios, plain)
    with pytest.raises(ValueError, match="prompt_embeds must be a tensor"):
        tiny_pipeline(prompt_embeds=BaseModelOutputWithPooling(last_hidden_state=tensor), **FAST)


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.zeros(900, np.int16), 8000, r"audio must be of floating-point samples .* divide .* 32768"),
        (torch.zeros(900, dtype=torch.int32), 8000, "audio must be of floating-point samples"),
        ("song.wav", 8000, "audio must be of floating-point samples .* str"),
        (None, 8000, "audio must be of floating-point samples"),
        ([[0.1, 0.2], [0.1]], 8000, "audio must be an array of one shape"),
        (np.zeros(900), float("inf"), "sampling_rate must be .* got inf"),
        (np.zeros(900), float("nan"), "sampling_rate must be .* got nan"),
        (np.zeros(900), True, "sampling_rate must be .* got True"),
        (np.zeros(900), "8000", "sampling_rate must be"),
        (np.zeros(900), 1, "sampling_rate must be a whole number of Hz from 1000 to 768000, got 1"),
    ],
)
def test_audio_to_encode_is_checked(tiny_pipeline, audio, rate, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.encode_audio(audio, rate)


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_other_kinds_are_named(tiny_parts, name):
    with pytest.raises(ValueError, match=f"{name} must be .* got '?folder"):
        MusicLDMPipeline(**tiny_parts | {name: "folder"})


def test_sessions_and_requests_are_checked():
    for options, message in (
        ({"model": 3}, "model must be a bundled model, a folder"),
        ({"model": ""}, "model must be a bundled model"),
        ({"device": 3}, "device must be the name of a device"),
        ({"dtype": "float8"}, "dtype must be one of auto, float32"),
        ({"fast": "no"}, "fast must be true or false"),
    ):
        with pytest.raises(ValueError, match=message):
            Session(**options)
    session = Session(device="cpu")
    for call, message in (
        (lambda: session.run("piano"), r"must be a musicldm.generate.Request, or an Edit, got 'piano' \(str\)"),
        (lambda: session.run(Request("a"), progress=3), "progress must be a function"),
        (lambda: session.run(Request("a"), cancel=3), "cancel must be a function"),
        (lambda: list(session.run_many([Request("a")], at_once=0)), "at_once must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_values_are_shown_in_short():
    assert shown("abc") == "'abc'"
    assert len(shown("piano " * 2000)) < 100
    assert len(shown(["piano"] * 500)) < 100
    assert len(shown(OrderedDict.fromkeys(range(500)))) < 100
    with pytest.raises(ValueError, match="x must be a number from 0 to 1, got 2"):
        check_number("x", 2, 0, 1)
    check_text("prompt", "piano 🎹")


def test_a_long_prompt_is_not_repeated_whole(tiny_pipeline):
    with pytest.warns(UserWarning, match="only the first 64 of .* tokens are used of") as warned:
        tiny_pipeline("piano " * 1700, seed=0, **FAST)
    assert max(len(str(one.message)) for one in warned) < 200
