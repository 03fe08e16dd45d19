"""What the pipeline accepts: checks of its arguments, each naming value, expectation and way out; sizes that follow."""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import SpeechT5HifiGan

from musicldm.config.values import check_kind, check_number, check_text, check_whole, shown
from musicldm.models.latents import latent_factor, latent_shape
from vocoder import mel_config

OUTPUT_TYPES = ("np", "pt", "latent")
EMBEDDINGS_OF_OUTPUTS = ("pooler_output", "text_embeds")  # of what transformers' CLAP returns of texts


def as_embeds(name: str, embeds: Any) -> Tensor | None:
    """The tensor of an argument that has embeddings: itself, or that in an output object of CLAP's text tower.

    Raises:
        ValueError: for something else, or NaN or infinity.
    """
    for field in EMBEDDINGS_OF_OUTPUTS:
        if isinstance(found := getattr(embeds, field, None), Tensor):
            embeds = found
    if embeds is None:
        return None
    _check_tensor(name, embeds, "a tensor (prompts, size) of floating point, or what get_text_features returns")
    return embeds


def _check_tensor(name: str, value: Any, what: str) -> None:
    check_kind(name, value, Tensor, what)
    if not value.is_floating_point():
        raise ValueError(f"{name} must be {what}, got {value.dtype}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} holds NaN or infinity; look at where it was computed")


def check_texts(
    prompt: str | list[str] | None,
    negative_prompt: str | list[str] | None,
    prompt_embeds: Tensor | None,
    negative_prompt_embeds: Tensor | None,
    embedding_size: int | None = None,
) -> int:
    """The number of prompts, P; ValueError unless prompts come as texts or as embeddings (P, D), and negatives fit."""
    for name, text, embeds in (
        ("prompt", prompt, prompt_embeds),
        ("negative_prompt", negative_prompt, negative_prompt_embeds),
    ):
        if text is not None and embeds is not None:
            raise ValueError(f"give either {name} or {name}_embeds, got both ({name} {shown(text)})")
    if prompt is None and prompt_embeds is None:
        raise ValueError("give either prompt or prompt_embeds, got neither")
    n_prompts = 1
    if prompt is not None:
        n_prompts = _count("prompt", prompt)
    elif prompt_embeds is not None:
        n_prompts = len(prompt_embeds) if prompt_embeds.ndim else 1
    n_negative = 1 if negative_prompt is None else _count("negative_prompt", negative_prompt)
    if isinstance(negative_prompt, list) and n_negative != n_prompts:
        raise ValueError(
            f"there are {n_negative} negative prompts for {n_prompts} prompts; give one for all, or one for each"
        )
    for name, embeds in (("prompt_embeds", prompt_embeds), ("negative_prompt_embeds", negative_prompt_embeds)):
        if embeds is None:
            continue
        if embeds.ndim != 2 or len(embeds) == 0 or embedding_size not in (None, embeds.shape[1]):
            raise ValueError(f"{name} must be (prompts, {embedding_size or 'size'}), got shape {tuple(embeds.shape)}")
        if len(embeds) != n_prompts:
            raise ValueError(f"{name} has {len(embeds)} rows for {n_prompts} prompts; give one for each")
    return n_prompts


def _count(name: str, texts: str | list[str]) -> int:
    if isinstance(texts, str):
        texts = [texts]
    elif not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a string or a list of at least one, got {shown(texts)}")
    for text in texts:
        check_text(name, text)
    return len(texts)


def check_options(
    *,
    guidance_scale: float,
    guidance_interval: tuple[float, float],
    eta: float,
    num_waveforms_per_prompt: int,
    output_type: str,
    return_best: int | None,
    return_dict: bool,
    latents: Tensor | None,
    cross_attention_kwargs: dict[str, Any] | None,
    correct: Callable | None,
    can_rank: bool,
) -> None:
    """ValueError unless each option is of its kind and in its range, and they go together."""
    check_number("guidance_scale", guidance_scale)
    check_interval(guidance_interval)
    check_number("eta", eta)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 (DDIM, no noise) to 1 (as much as DDPM), got {eta}")
    check_whole("num_waveforms_per_prompt", num_waveforms_per_prompt)
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {shown(output_type)}")
    check_kind("return_dict", return_dict, (bool, int, type(None)), "True or False")
    if latents is not None:
        _check_tensor("latents", latents, "a tensor (B, C, T/f, F/f) of floating point: the first noise")
    if correct is not None and not callable(correct):
        raise ValueError(f"correct must be a function of (prediction, model_input, timestep), got {shown(correct)}")
    check_kind("cross_attention_kwargs", cross_attention_kwargs, (dict, type(None)), "a dictionary, or None")
    if (cross_attention_kwargs or {}).get("window") is not None:
        check_whole("cross_attention_kwargs['window']", cross_attention_kwargs["window"], 0)
    if (cross_attention_kwargs or {}).get("scale") is not None:
        check_number("cross_attention_kwargs['scale']", cross_attention_kwargs["scale"])
    if return_best is None:
        return
    check_whole("return_best", return_best)
    if return_best > num_waveforms_per_prompt:
        raise ValueError(
            f"return_best={return_best} of {num_waveforms_per_prompt} candidates; raise num_waveforms_per_prompt"
        )
    if num_waveforms_per_prompt > 1 and output_type == "latent":
        raise ValueError("latents are not ranked, so there is no best one; leave return_best out or ask for waveforms")
    if num_waveforms_per_prompt > 1 and not can_rank:
        raise ValueError("choosing the best needs text_encoder and feature_extractor; give the pipeline both")


def check_interval(interval: tuple[float, float]) -> None:
    """ValueError unless ``interval`` is one of guidance: two shares of the noise, the lower one first."""
    try:
        low, high = interval
        for share in (low, high):
            check_number("", share, 0, 1)
        fits = low <= high and not isinstance(interval, dict | set | str)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"guidance_interval must be two shares of the noise from 0 to 1, got {shown(interval)}")


def plan_lengths(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    vocoder: SpeechT5HifiGan,
    n_items: int,
    audio_length_in_s: float | None = None,
    latents: Tensor | None = None,
) -> tuple[int, tuple[int, int, int, int]]:
    """Samples to return, and the shape (B, C, T/f, F/f) of latents that hold at least as many.

    Without a length, as much as ``latents`` hold, else what the UNet was trained on.

    Raises:
        ValueError: for a length that is none, or does not match ``latents``, or a vocoder that contradicts itself.
    """
    if (bands := mel_config(vocoder).n_mels) != (taken := vocoder.config.model_in_dim):
        raise ValueError(
            f"the vocoder takes {taken} mel bands (model_in_dim) where its configuration's mel names {bands}; "
            "change both alike, or set its mel to None"
        )
    factor, hop, rate = latent_factor(vae), math.prod(vocoder.config.upsample_rates), vocoder.config.sampling_rate
    if audio_length_in_s is not None:
        check_number("audio_length_in_s", audio_length_in_s)
        if audio_length_in_s * rate < hop:
            raise ValueError(f"audio_length_in_s must be at least one frame, {hop / rate:g} s, got {audio_length_in_s}")
        n_samples = round(float(audio_length_in_s) * rate)
        latent_frames = -(-n_samples // (hop * factor))
    else:
        size = unet.config.sample_size
        if latents is not None and latents.ndim == 4:
            latent_frames = latents.shape[2]
        elif size is not None:
            latent_frames = size if isinstance(size, int) else size[0]
        else:
            raise ValueError("the UNet's configuration names no sample_size; give audio_length_in_s")
        n_samples = latent_frames * factor * hop
    shape = (n_items, *latent_shape(vae, mel_config(vocoder), latent_frames * factor))
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(
            f"{n_items} waveform(s) of {n_samples / rate:g} s need latents of shape {shape}, got {tuple(latents.shape)}"
        )
    return n_samples, shape
