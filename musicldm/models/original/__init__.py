"""Original checkpoints -> diffusers and transformers modules.

    one file (UNet, its average, VAE, HiFi-GAN, CLAP under their prefixes), or one file of each part
        -> {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "vocoder": SpeechT5HifiGan,
            "clap": ClapModel, "scheduler": DDIMScheduler}

Chen et al. (2023), MusicLDM, https://arxiv.org/abs/2308.01546, and LAION-CLAP, https://arxiv.org/abs/2211.06687
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

from musicldm.models.clap import clap_feature_extractor
from musicldm.models.original import config_map
from musicldm.models.original.key_map import (
    VOCODER_NAMES,
    averaged_name,
    clap_names,
    original_name,
    unet_names,
    vae_names,
)
from musicldm.models.original.pickles import find_tensors, read_file

__all__ = ["load_original", "original_feature_extractor"]

UNET, AVERAGE, VAE, CLAP = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model.model."
VOCODER = VAE + "vocoder."
# A part's own file: how its names begin, and what a full checkpoint puts before them.
SEPARATE_FILES = {
    ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."): VAE,
    ("conv_pre.", "conv_post.", "ups."): VOCODER,
    ("text_branch.", "audio_branch."): CLAP,
    ("model.text_branch.", "model.audio_branch."): CLAP.removesuffix("model."),  # a whole CLAP_Module
    ("diffusion_model.",): "model.",
    ("input_blocks.", "output_blocks."): UNET,
}
# Known and not needed: tables that the scheduler computes, networks of the VAE's training loss, and in CLAP constants
# and heads that play no part in the embeddings.
NOT_NEEDED = re.compile(
    r"betas|logvar|scale_factor|lvlb_weights|(log_|sqrt_)\w*alphas_cumprod|alphas_cumprod(_prev)?|posterior_\w+"
    r"|model_ema\.(decay|num_updates)|first_stage_model\.loss\..+"
    r"|cond_stage_model\.model\.((text|audio)_transform\..+|text_branch\.embeddings\.(position|token_type)_ids"
    r"|audio_branch\.((spectrogram_extractor|logmel_extractor|tscam_conv|head)\..+|.+\.attn_mask))"
)
FUSION = CLAP + "audio_branch.patch_embed.mel_conv2d.weight"  # only a CLAP with feature fusion has it
SHOWN = 4  # names in an error message


def load_original(
    path_or_state_dict: str | Path | Mapping[str, Any] | nn.Module,
    config: config_map.Config | str | Path | None,
    vocoder_config: config_map.Config | str | Path | None = None,
    clap_config: config_map.Config | str | Path | None = None,
    use_ema: bool = True,
) -> dict[str, Any]:
    """Whichever of ``unet``, ``vae``, ``vocoder``, ``clap`` and ``scheduler`` there is, in float32 on the CPU.

    Args:
        path_or_state_dict: a ``.safetensors`` file or torch pickle, its content, or a ``laion_clap.CLAP_Module``.
        config: the authors' YAML as path or mapping; like the other two, None means the released sizes.
        vocoder_config: HiFi-GAN's JSON.
        clap_config: LAION's model JSON, optionally with the towers' own sizes under ``htsat`` and ``roberta``.
            Whether CLAP has feature fusion the weights tell, unless ``enable_fusion`` does.
        use_ema: take the averaged weights of the UNet where the checkpoint has them, as the original does.

    Raises:
        FileNotFoundError, OSError: if a file cannot be opened.
        ValueError: if the file is no checkpoint or unsafe, or if names or shapes disagree with the configs.
    """
    if isinstance(path_or_state_dict, nn.Module):
        origin = type(path_or_state_dict).__name__
        clap_config = clap_config or config_map.of_clap_module(path_or_state_dict)
        state = find_tensors(path_or_state_dict.state_dict(), origin)
    elif isinstance(path_or_state_dict, Mapping):
        origin = "the state dictionary"
        state = find_tensors(path_or_state_dict, origin)
    else:
        origin = str(path_or_state_dict)
        state = find_tensors(read_file(path_or_state_dict), origin)
    state = full_layout(state)
    config = config_map.read_config(config, config_map.RELEASED)

    def holds(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in state)

    parts: dict[str, Any] = {}
    averaged = use_ema and holds(AVERAGE)
    if averaged or holds(UNET):
        options = config_map.unet_config(config)
        table = unet_names(options)

        def unet_key(name: str) -> str:
            original = original_name(name, table)
            return averaged_name(original) if averaged else UNET + original

        parts["unet"] = assemble(lambda: UNet2DConditionModel(**options), unet_key, state, origin)
        if (schedule := config_map.scheduler_config(config)) is not None:
            parts["scheduler"] = DDIMScheduler(**schedule)
    discard(state, UNET, if_any=averaged)
    discard(state, AVERAGE, if_any=not averaged)

    if any(holds(VAE + coder) for coder in ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
        vae_options = config_map.vae_config(config, float(state.get("scale_factor", 1.0)))
        vae_table = vae_names(vae_options)
        parts["vae"] = assemble(
            lambda: AutoencoderKL(**vae_options), lambda name: VAE + original_name(name, vae_table), state, origin
        )
    if holds(VOCODER):
        fold_weight_norm(state)
        hifigan = config_map.read_config(vocoder_config, config_map.RELEASED_VOCODER)
        vocoder_options = SpeechT5HifiGanConfig(**config_map.vocoder_config(hifigan, config))
        state[VOCODER + "mean"] = torch.zeros(vocoder_options.model_in_dim)  # unused: the log-mel goes in as it is
        state[VOCODER + "scale"] = torch.ones(vocoder_options.model_in_dim)
        parts["vocoder"] = assemble(
            lambda: SpeechT5HifiGan(vocoder_options),
            lambda name: VOCODER + original_name(name, VOCODER_NAMES),
            state,
            origin,
        )
    if holds(CLAP):
        clap_sizes = config_map.clap_config(
            config_map.read_config(clap_config, config_map.RELEASED_CLAP), FUSION in state
        )
        clap_options = ClapConfig(**clap_sizes)
        n_positions = clap_options.text_config.max_position_embeddings
        embeddings = CLAP + "text_branch.embeddings."
        state[embeddings + "position_ids"] = torch.arange(n_positions)[None]
        state[embeddings + "token_type_ids"] = torch.zeros(1, n_positions, dtype=torch.long)
        clap_table = clap_names(clap_options.audio_config.depths)
        parts["clap"] = assemble(
            lambda: ClapModel(clap_options), lambda name: CLAP + original_name(name, clap_table), state, origin
        )

    if unknown := [key for key in state if not NOT_NEEDED.fullmatch(key)]:
        raise ValueError(f"{origin} holds {listed(unknown)} that the config has no place for; {WAY_OUT}")
    if not parts:
        raise ValueError(f"{origin} holds no part of MusicLDM, only {listed(list(state))}")
    return parts


WAY_OUT = "is this the config that belongs to the checkpoint?"


def original_feature_extractor(
    clap_config: config_map.Config | str | Path | None = None, fused: bool = False
) -> ClapFeatureExtractor:
    """The front end that a CLAP of this configuration was trained with; None means the released one.

    ``fused``: whether it has feature fusion, where the configuration does not say so.
    """
    options = config_map.read_config(clap_config, config_map.RELEASED_CLAP)
    audio = config_map.need(options, "audio_cfg")
    sample_rate = config_map.need(audio, "sample_rate")
    return clap_feature_extractor(
        sample_rate=sample_rate,
        clip_s=config_map.need(audio, "clip_samples") / sample_rate,
        n_fft=config_map.need(audio, "window_size"),
        hop_length=config_map.need(audio, "hop_size"),
        n_mels=config_map.need(audio, "mel_bins"),
        f_min=config_map.need(audio, "fmin"),
        f_max=config_map.need(audio, "fmax"),
        fusion=options.get("enable_fusion", fused),
    )


def full_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of a part's own file as a full checkpoint has them."""
    for beginnings, prefix in SEPARATE_FILES.items():
        if any(key.startswith(beginnings) for key in state):
            return {prefix + key: value for key, value in state.items()}
    return state


def discard(state: dict[str, Tensor], prefix: str, if_any: bool) -> None:
    """Drop the weights of the UNet that were not asked for."""
    if if_any:
        for key in [key for key in state if key.startswith(prefix)]:
            del state[key]


def fold_weight_norm(state: dict[str, Tensor]) -> None:
    """Replace ``weight_g`` and ``weight_v`` by the weight g v / |v|, the norm over all axes but the first, in place."""
    for key in [key for key in state if key.startswith(VOCODER) and key.endswith(".weight_v")]:
        stem = key.removesuffix("_v")
        if stem + "_g" in state:
            v, g = state.pop(key).float(), state.pop(stem + "_g").float()
            norm = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
            state[stem] = v * (g / norm)


def assemble(build: Callable[[], nn.Module], key_of: Callable[[str], str], state: dict[str, Tensor], origin: str):
    """The module that ``build`` makes, in evaluation mode, with its weights taken out of ``state``.

    ``key_of`` gives the key in ``state`` of each of the module's names. The module is built without memory for initial
    weights of its own.
    """
    with torch.device("meta"):
        module = build()
    weights, missing, misshaped, used = {}, [], [], set()
    for name, like in module.state_dict().items():
        key, _, third = key_of(name).partition("#")
        if third:
            key += third[1:]  # "qkv#0.weight" is found in "qkv.weight"
        if key not in state:
            missing.append(key)
            continue
        tensor = state[key].chunk(3)[int(third[0])] if third else state[key]
        if tensor.shape == (*like.shape, 1, 1):  # 1x1 convolutions that diffusers writes as linear layers
            tensor = tensor[..., 0, 0]
        if tensor.shape != like.shape:
            misshaped.append(f"{key} {tuple(tensor.shape)} instead of {tuple(like.shape)}")
            continue
        used.add(key)
        device = tensor.device if tensor.is_meta else "cpu"
        # copied: memory-mapped or shared tensors would tie the module to the file or to the caller's dictionary
        weights[name] = tensor.to(device, like.dtype, copy=True, memory_format=torch.contiguous_format)
    if missing or misshaped:
        faults = [f"lacks {listed(missing)}"] if missing else []
        faults += [f"has other shapes in {listed(misshaped)}"] if misshaped else []
        raise ValueError(f"{origin} as {type(module).__name__} {' and '.join(faults)}; {WAY_OUT}")
    for key in used:
        del state[key]
    module.load_state_dict(weights, assign=True)
    return module.eval()


def listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''} ({shown})"
