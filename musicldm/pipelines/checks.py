"""What the pipeline accepts: checks of its arguments, each naming value, expectation and way out; sizes that follow."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

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


@dataclass(frozen=True)
class Prompts:
    """What the music of a call is to be like; see `MusicLDMPipeline.__call__`."""

    prompt: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None

    @classmethod
    def of(cls, prompt: Any, negative_prompt: Any, prompt_embeds: Any, negative_prompt_embeds: Any) -> "Prompts":
        """With embeddings as tensors; errors as of `as_embeds`."""
        embeds = as_embeds("prompt_embeds", prompt_embeds)
        return cls(prompt, negative_prompt, embeds, as_embeds("negative_prompt_embeds", negative_prompt_embeds))

    def check(self, embedding_size: int) -> int:
        """The number of prompts, P; errors as of `check_texts`."""
        return check_texts(*self.arguments, embedding_size)

    @property
    def arguments(self) -> tuple[Any, Any, Any, Any]:
        """Of `MusicLDMBase.encode_prompt`."""
        return self.prompt, self.negative_prompt, self.prompt_embeds, self.negative_prompt_embeds


@dataclass(frozen=True)
class SamplingOptions:
    """How a call denoises; see `MusicLDMPipeline.__call__`."""

    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    eta: float
    cross_attention_kwargs: dict[str, Any] | None
    correct: Callable | None
    loop: bool
    windows: bool = False
    context_guidance_scale: float = 1.0  # 1 where there is no context

    @property
    def is_guided(self) -> bool:
        """Whether anything is evaluated without the text."""
        return self.guidance_scale > 1.0 or self.context_guidance_scale != 1.0

    @property
    def evaluations(self) -> int:
        """Of the network for each item and step, two at least as guidance may change."""
        return 2 if self.context_guidance_scale == 1 else 3

    def check(self) -> None:
        """ValueError unless each is of its kind and in its range."""
        check_number("guidance_scale", self.guidance_scale)
        check_interval(self.guidance_interval)
        check_number("eta", self.eta)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be from 0 (DDIM, no noise) to 1 (as much as DDPM), got {self.eta}")
        correct, attention = self.correct, self.cross_attention_kwargs
        if correct is not None and not callable(correct):
            raise ValueError(f"correct must be a function of (prediction, model_input, timestep), got {shown(correct)}")
        check_kind("cross_attention_kwargs", attention, (dict, type(None)), "a dictionary, or None")
        if (attention or {}).get("window") is not None:
            check_whole("cross_attention_kwargs['window']", attention["window"], 0)
        if (attention or {}).get("scale") is not None:
            check_number("cross_attention_kwargs['scale']", attention["scale"])
        check_kind("loop", self.loop, bool, "True or False")
        check_kind("windows", self.windows, bool, "True or False")


@dataclass(frozen=True)
class OutputOptions:
    """What a call returns; see `MusicLDMPipeline.__call__`."""

    num_waveforms_per_prompt: int
    return_best: int | None
    output_type: str
    return_dict: bool
    output_types: tuple[str, ...] = OUTPUT_TYPES  # that the pipeline knows

    def check(self, can_rank: bool) -> None:
        """ValueError unless each is of its kind and in its range, and they go together."""
        check_whole("num_waveforms_per_prompt", self.num_waveforms_per_prompt)
        if self.output_type not in self.output_types:
            known = ", ".join(self.output_types)
            raise ValueError(f"output_type must be one of {known}, got {shown(self.output_type)}")
        check_kind("return_dict", self.return_dict, (bool, int, type(None)), "True or False")
        if self.return_best is None:
            return
        check_whole("return_best", self.return_best)
        if self.return_best > self.num_waveforms_per_prompt:
            raise ValueError(
                f"return_best={self.return_best} of {self.num_waveforms_per_prompt} candidates; raise "
                "num_waveforms_per_prompt"
            )
        if self.num_waveforms_per_prompt > 1 and self.output_type == "latent":
            raise ValueError(
                "latents are not ranked, so there is no best one; leave return_best out or ask for waveforms"
            )
        if self.num_waveforms_per_prompt > 1 and not can_rank:
            raise ValueError("choosing the best needs text_encoder and feature_extractor; give the pipeline both")


def check_latents(latents: Tensor | None) -> None:
    """ValueError unless ``latents`` can be the first noise of a call; its shape is checked by `plan_lengths`."""
    if latents is not None:
        _check_tensor("latents", latents, "a tensor (B, C, T/f, F/f) of floating point: the first noise")


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


class Lengths(NamedTuple):
    """How much a call makes."""

    n_samples: int  # of each waveform, at the model's rate
    latent_shape: tuple[int, int, int, int]  # (B, C, T/f, F/f)


def plan_lengths(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    vocoder: SpeechT5HifiGan,
    n_items: int,
    audio_length_in_s: float | None = None,
    latents: Tensor | None = None,
    loop: bool = False,
) -> Lengths:
    """Samples to return, and the shape of latents that hold at least as many; for a loop the nearest number.

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
        least = hop * factor / 2 if loop else hop  # what can be stretched to the length of a loop
        if audio_length_in_s * rate < least:
            what = "half a latent frame for a loop" if loop else "one frame"
            raise ValueError(f"audio_length_in_s must be at least {what}, {least / rate:g} s, got {audio_length_in_s}")
        n_samples = round(float(audio_length_in_s) * rate)
        latent_frames = -(-n_samples // (hop * factor))
        if loop:
            latent_frames = max(1, round(n_samples / (hop * factor)))
    else:
        latent_frames = _frames_of(unet, latents)
        n_samples = latent_frames * factor * hop
    shape = (n_items, *latent_shape(vae, mel_config(vocoder), latent_frames * factor))
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(
            f"{n_items} waveform(s) of {n_samples / rate:g} s need latents of shape {shape}, got {tuple(latents.shape)}"
        )
    return Lengths(n_samples, shape)


def _frames_of(unet: UNet2DConditionModel, latents: Tensor | None) -> int:
    """Latent frames of ``latents``, or without any of what the UNet was trained on."""
    size = unet.config.sample_size
    if latents is not None and latents.ndim == 4:
        return latents.shape[2]
    if size is None:
        raise ValueError("the UNet's configuration names no sample_size; give audio_length_in_s")
    return size if isinstance(size, int) else size[0]
