"""Original checkpoints -> diffusers and transformers modules.

    one file (UNet, its average, VAE, HiFi-GAN, CLAP under their prefixes), or one file of each part
        -> {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "vocoder": SpeechT5HifiGan,
            "clap": ClapModel, "scheduler": DDIMScheduler}

Chen et al. (2023), MusicLDM, https://arxiv.org/abs/2308.01546, and LAION-CLAP, https://arxiv.org/abs/2211.06687
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
WAY_OUT = "is this the config that belongs to the checkpoint?"


class Weights:
    """Tensors under the names of a full checkpoint; what a part takes goes.

    Args:
        state: the tensors by name.
        origin: where they are from, for errors.
    """

    def __init__(self, state: dict[str, Tensor], origin: str):
        self.state, self.origin = state, origin

    def holds(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.state)

    def discard(self, prefix: str) -> None:
        for key in [key for key in self.state if key.startswith(prefix)]:
            del self.state[key]

    def assemble(self, build: Callable[[], nn.Module], key_of: Callable[[str], str]) -> nn.Module:
        """The module that ``build`` makes, in evaluation mode, with its weights.

        ``key_of`` gives the key of each of the module's names. The module is built without memory for initial weights
        of its own.
        """
        with torch.device("meta"):
            module = build()
        weights, missing, misshaped, used = {}, [], [], set()
        for name, like in module.state_dict().items():
            key, _, third = key_of(name).partition("#")
            if third:
                key += third[1:]  # "qkv#0.weight" is found in "qkv.weight"
            if key not in self.state:
                missing.append(key)
                continue
            tensor = self.state[key].chunk(3)[int(third[0])] if third else self.state[key]
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
            raise ValueError(f"{self.origin} as {type(module).__name__} {' and '.join(faults)}; {WAY_OUT}")
        for key in used:
            del self.state[key]
        module.load_state_dict(weights, assign=True)
        return module.eval()


Config = config_map.Config | str | Path | None  # content or file; None means the released sizes


@dataclass(frozen=True)
class OriginalCheckpoint:
    """Weights of the authors and the configurations that they belong to; fields as in `load_original`."""

    path_or_state_dict: str | Path | Mapping[str, Any] | nn.Module
    config: Config = None
    vocoder_config: Config = None
    clap_config: Config = None
    use_ema: bool = True

    def load(self) -> dict[str, Any]:
        """The parts; see `load_original`."""
        weights, clap_config = self._weights()
        config = config_map.read_config(self.config, config_map.RELEASED)
        parts = read_unet(weights, config, self.use_ema) | read_vae(weights, config)
        parts |= read_vocoder(weights, config, self.vocoder_config) | read_clap(weights, clap_config)
        if unknown := [key for key in weights.state if not NOT_NEEDED.fullmatch(key)]:
            raise ValueError(f"{weights.origin} holds {listed(unknown)} that the config has no place for; {WAY_OUT}")
        if not parts:
            raise ValueError(f"{weights.origin} holds no part of MusicLDM, only {listed(list(weights.state))}")
        return parts

    def _weights(self) -> tuple[Weights, Config]:
        """The tensors, and the configuration of their CLAP."""
        given, clap_config = self.path_or_state_dict, self.clap_config
        if isinstance(given, nn.Module):
            origin, content = type(given).__name__, given.state_dict()
            clap_config = clap_config or config_map.of_clap_module(given)
        elif isinstance(given, Mapping):
            origin, content = "the state dictionary", given
        else:
            origin, content = str(given), read_file(given)
        return Weights(full_layout(find_tensors(content, origin)), origin), clap_config


def load_original(
    path_or_state_dict: str | Path | Mapping[str, Any] | nn.Module,
    config: Config,
    vocoder_config: Config = None,
    clap_config: Config = None,
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
    return OriginalCheckpoint(path_or_state_dict, config, vocoder_config, clap_config, use_ema).load()


def read_unet(weights: Weights, config: config_map.Config, use_ema: bool) -> dict[str, Any]:
    """The UNet and its scheduler, as far as they are there."""
    parts: dict[str, Any] = {}
    averaged = use_ema and weights.holds(AVERAGE)
    if averaged or weights.holds(UNET):
        options = config_map.unet_config(config)
        table = unet_names(options)

        def key_of(name: str) -> str:
            original = original_name(name, table)
            return averaged_name(original) if averaged else UNET + original

        parts["unet"] = weights.assemble(lambda: UNet2DConditionModel(**options), key_of)
        if (schedule := config_map.scheduler_config(config)) is not None:
            parts["scheduler"] = DDIMScheduler(**schedule)
    weights.discard(UNET if averaged else AVERAGE)  # what was not asked for
    return parts


def read_vae(weights: Weights, config: config_map.Config) -> dict[str, Any]:
    """The autoencoder, if it is there."""
    if not any(weights.holds(VAE + coder) for coder in ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
        return {}
    options = config_map.vae_config(config, float(weights.state.get("scale_factor", 1.0)))
    table = vae_names(options)
    return {"vae": weights.assemble(lambda: AutoencoderKL(**options), lambda name: VAE + original_name(name, table))}


def read_vocoder(weights: Weights, config: config_map.Config, vocoder_config: Config) -> dict[str, Any]:
    """HiFi-GAN, if it is there."""
    if not weights.holds(VOCODER):
        return {}
    fold_weight_norm(weights.state)
    hifigan = config_map.read_config(vocoder_config, config_map.RELEASED_VOCODER)
    options = SpeechT5HifiGanConfig(**config_map.vocoder_config(hifigan, config))
    weights.state[VOCODER + "mean"] = torch.zeros(options.model_in_dim)  # unused: the log-mel goes in as it is
    weights.state[VOCODER + "scale"] = torch.ones(options.model_in_dim)
    vocoder = weights.assemble(
        lambda: SpeechT5HifiGan(options), lambda name: VOCODER + original_name(name, VOCODER_NAMES)
    )
    return {"vocoder": vocoder}


def read_clap(weights: Weights, clap_config: Config) -> dict[str, Any]:
    """CLAP, if it is there."""
    if not weights.holds(CLAP):
        return {}
    sizes = config_map.read_config(clap_config, config_map.RELEASED_CLAP)
    options = ClapConfig(**config_map.clap_config(sizes, FUSION in weights.state))
    n_positions = options.text_config.max_position_embeddings
    embeddings = CLAP + "text_branch.embeddings."
    weights.state[embeddings + "position_ids"] = torch.arange(n_positions)[None]
    weights.state[embeddings + "token_type_ids"] = torch.zeros(1, n_positions, dtype=torch.long)
    table = clap_names(options.audio_config.depths)
    return {"clap": weights.assemble(lambda: ClapModel(options), lambda name: CLAP + original_name(name, table))}


def original_feature_extractor(clap_config: Config = None, fused: bool = False) -> ClapFeatureExtractor:
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


def fold_weight_norm(state: dict[str, Tensor]) -> None:
    """Replace ``weight_g`` and ``weight_v`` by the weight g v / |v|, the norm over all axes but the first, in place."""
    for key in [key for key in state if key.startswith(VOCODER) and key.endswith(".weight_v")]:
        stem = key.removesuffix("_v")
        if stem + "_g" in state:
            v, g = state.pop(key).float(), state.pop(stem + "_g").float()
            norm = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
            state[stem] = v * (g / norm)


def listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''} ({shown})"
