"""What the pipeline accepts: checks of its arguments, each naming value, expectation and way out; sizes that follow."""

import math
from collections.abc import Iterable
from numbers import Real

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import SpeechT5HifiGan

from musicldm.models.latents import latent_factor, latent_shape
from musicldm.sampling.denoising import check_count
from vocoder import mel_config

OUTPUT_TYPES = ("np", "pt", "latent")


def check_texts(
    prompt: str | list[str] | None,
    negative_prompt: str | list[str] | None,
    prompt_embeds: Tensor | None,
    negative_prompt_embeds: Tensor | None,
    embedding_size: int | None = None,
) -> int:
    """The number of prompts, P; ValueError unless prompts come as texts or as embeddings (P, D), and negatives fit."""
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError(
            f"give either prompt or prompt_embeds, got {'neither' if prompt is None else f'both (prompt {prompt!r})'}"
        )
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError(
            f"give either negative_prompt or negative_prompt_embeds, got both (negative_prompt {negative_prompt!r})"
        )
    n_prompts = len(prompt_embeds) if prompt is None else 1 if isinstance(prompt, str) else _count("prompt", prompt)
    if negative_prompt is not None and not isinstance(negative_prompt, str):
        n_negative = _count("negative_prompt", negative_prompt)
        if n_negative != n_prompts:
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


def _count(name: str, texts: list[str]) -> int:
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a string or a list of at least one, got {texts!r}")
    return len(texts)


def check_options(
    *,
    guidance_scale: float,
    guidance_interval: tuple[float, float],
    eta: float,
    num_waveforms_per_prompt: int,
    callback_steps: int,
    output_type: str,
    return_best: int | None,
    can_rank: bool,
) -> None:
    """ValueError unless each option is in its range and they go together."""
    _check_number("guidance_scale", guidance_scale)
    if len(guidance_interval) != 2 or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
        raise ValueError(f"guidance_interval must be two shares of the noise from 0 to 1, got {guidance_interval}")
    _check_number("eta", eta)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 (DDIM, no noise) to 1 (as much as DDPM), got {eta}")
    check_count("num_waveforms_per_prompt", num_waveforms_per_prompt)
    check_count("callback_steps", callback_steps)
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
    if return_best is None:
        return
    check_count("return_best", return_best)
    if return_best > num_waveforms_per_prompt:
        raise ValueError(
            f"return_best={return_best} of {num_waveforms_per_prompt} candidates; raise num_waveforms_per_prompt"
        )
    if num_waveforms_per_prompt > 1 and output_type == "latent":
        raise ValueError("latents are not ranked, so there is no best one; leave return_best out or ask for waveforms")
    if num_waveforms_per_prompt > 1 and not can_rank:
        raise ValueError("choosing the best needs text_encoder and feature_extractor; give the pipeline both")


def check_callback_inputs(wanted: Iterable[str], known: Iterable[str]) -> None:
    """ValueError unless ``callback_on_step_end`` can be given all tensors of the ``wanted`` names."""
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"callback_on_step_end_tensor_inputs can be of {', '.join(known)}, got {unknown}")


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
        ValueError: for a length that is none, or does not match ``latents``.
    """
    factor, hop, rate = latent_factor(vae), math.prod(vocoder.config.upsample_rates), vocoder.config.sampling_rate
    if audio_length_in_s is not None:
        _check_number("audio_length_in_s", audio_length_in_s)
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


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
