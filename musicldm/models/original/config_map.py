"""Sizes: the original's configuration files -> arguments of diffusers' and transformers' classes.

``config`` is the authors' YAML (UNet, VAE, schedule, front end), ``vocoder_config`` HiFi-GAN's JSON, ``clap_config``
LAION's model JSON, optionally with ``htsat`` and ``roberta`` for towers of other sizes than the named ones.
"""

import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from vocoder import MelConfig
from vocoder.mel import mel_to_dict

Config = Mapping[str, Any]

RELEASED: Config = {
    "preprocessing": {"mel": {"target_length": 1024}},
    "model": {
        "params": {
            "linear_start": 0.0015,
            "linear_end": 0.0195,
            "timesteps": 1000,
            "latent_t_size": 256,
            "unet_config": {
                "params": {
                    "extra_film_condition_dim": 512,
                    "extra_film_use_concat": True,
                    "in_channels": 8,
                    "out_channels": 8,
                    "model_channels": 128,
                    "attention_resolutions": [8, 4, 2],
                    "num_res_blocks": 2,
                    "channel_mult": [1, 2, 3, 5],
                    "num_head_channels": 32,
                    "use_spatial_transformer": True,
                }
            },
            "first_stage_config": {
                "params": {
                    "embed_dim": 8,
                    "ddconfig": {
                        "double_z": True,
                        "z_channels": 8,
                        "in_channels": 1,
                        "out_ch": 1,
                        "ch": 128,
                        "ch_mult": [1, 2, 4],
                        "num_res_blocks": 2,
                    },
                }
            },
        }
    },
}
RELEASED_VOCODER: Config = {
    "resblock": "1",
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "upsample_initial_channel": 1024,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "num_mels": 64,
    "n_fft": 1024,
    "hop_size": 160,
    "sampling_rate": 16000,
    "fmin": 0,
    "fmax": 8000,
}
RELEASED_CLAP: Config = {
    "joint_embed_shape": 512,
    "audio_cfg": {
        "model_type": "HTSAT",
        "model_name": "base",
        "sample_rate": 48000,
        "clip_samples": 480000,
        "mel_bins": 64,
        "window_size": 1024,
        "hop_size": 480,
        "fmin": 50,
        "fmax": 14000,
    },
    "text_cfg": {"model_type": "roberta"},
}
HTSAT: dict[str, Config] = {  # LAION's named audio towers
    "tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [4, 8, 16, 32]},
    "base": {"embed_dim": 128, "depths": [2, 2, 12, 2], "num_heads": [4, 8, 16, 32]},
    "large": {"embed_dim": 256, "depths": [2, 2, 12, 2], "num_heads": [4, 8, 16, 32]},
}
ROBERTA_OPTIONS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
ROBERTA_OPTIONS += ("hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id")
ROBERTA_BASE: Config = {"vocab_size": 50265, "max_position_embeddings": 514, "layer_norm_eps": 1e-5}


def read_config(config: Config | str | Path | None, released: Config) -> Config:
    """``config`` as a plain mapping: a mapping, the path of a YAML or JSON file, or None for the ``released`` sizes."""
    if config is None:
        return released
    try:
        config = OmegaConf.load(config) if isinstance(config, str | Path) else OmegaConf.create(config)
        plain = OmegaConf.to_container(config, resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"the config cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(plain, dict) or not plain:
        raise ValueError(f"the config must map option names to values, got {plain!r:.80}")
    return plain


def need(config: Config, path: str) -> Any:
    """The option at the dotted ``path``, which must be there."""
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"the config lacks {path}: give the one that belongs to the checkpoint")
        value = value[key]
    return value


def _refuse(options: Config, where: str, supported: Config) -> None:
    """Options that build another network than the one known here."""
    for name, value in supported.items():
        if options.get(name, value) != value:
            raise ValueError(f"{where}.{name} = {options[name]!r} is not supported, only {value!r}")


def unet_config(config: Config) -> dict[str, Any]:
    """Arguments of ``diffusers.UNet2DConditionModel``."""
    where = "model.params.unet_config.params"
    params = need(config, where)
    _refuse(
        params,
        where,
        {"use_spatial_transformer": True, "transformer_depth": 1, "context_dim": None, "num_classes": None}
        | dict.fromkeys(("use_scale_shift_norm", "resblock_updown", "no_condition"), False)
        | {"conv_resample": True, "dims": 2},
    )
    width = need(config, f"{where}.model_channels")
    multipliers = need(config, f"{where}.channel_mult")
    if multipliers[0] != 1:
        raise ValueError(f"{where}.channel_mult must begin with 1, got {multipliers}")
    channels = [width * multiplier for multiplier in multipliers]
    attends = [2**level in need(config, f"{where}.attention_resolutions") for level in range(len(channels))]
    down = ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends]
    return {
        "sample_size": config["model"]["params"].get("latent_t_size", 256),
        "in_channels": need(config, f"{where}.in_channels"),
        "out_channels": need(config, f"{where}.out_channels"),
        "block_out_channels": channels,
        "layers_per_block": need(config, f"{where}.num_res_blocks"),
        "down_block_types": down,
        "up_block_types": [block.replace("Down", "Up") for block in reversed(down)],
        # diffusers' name for the number of heads; the original fixes their width instead
        "attention_head_dim": head_counts(params, channels, [*attends[:-1], True]),
        "cross_attention_dim": channels,  # the second attention of a block gets no context: one more self-attention
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": need(config, f"{where}.extra_film_condition_dim"),
        "class_embeddings_concat": bool(need(config, f"{where}.extra_film_use_concat")),
    }


def head_counts(params: Config, channels: list[int], attends: list[bool]) -> list[int]:
    """Attention heads of each level: channels / ``num_head_channels``, or ``num_heads`` where that is unset (-1)."""
    head_width = params.get("num_head_channels", -1)
    if head_width == -1:
        return [need(params, "num_heads")] * len(channels)
    for n_channels, attention in zip(channels, attends, strict=True):
        if attention and n_channels % head_width:
            raise ValueError(f"{n_channels} channels do not divide into heads of num_head_channels = {head_width}")
    return [max(1, n_channels // head_width) for n_channels in channels]


def vae_config(config: Config, scale_factor: float) -> dict[str, Any]:
    """Arguments of ``diffusers.AutoencoderKL``."""
    where = "model.params.first_stage_config.params"
    params, options = need(config, where), need(config, f"{where}.ddconfig")
    _refuse(params, where, {"subband": 1, "time_shuffle": 1})
    _refuse(options, f"{where}.ddconfig", {"double_z": True, "downsample_time": False, "attn_resolutions": []})
    latent_channels = need(options, "z_channels")
    if params.get("embed_dim", latent_channels) != latent_channels:
        raise ValueError(f"{where}: embed_dim ({params['embed_dim']}) and z_channels ({latent_channels}) must be equal")
    channels = [need(options, "ch") * multiplier for multiplier in need(options, "ch_mult")]
    return {
        "in_channels": need(options, "in_channels"),
        "out_channels": need(options, "out_ch"),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "block_out_channels": channels,
        "layers_per_block": need(options, "num_res_blocks"),
        "latent_channels": latent_channels,
        "sample_size": config["model"]["params"].get("latent_t_size", 256) * 2 ** (len(channels) - 1),
        "scaling_factor": scale_factor,
    }


def vocoder_config(options: Config, config: Config) -> dict[str, Any]:
    """Arguments of ``transformers.SpeechT5HifiGanConfig``, with the front end as ``mel``."""
    n_fft = need(options, "n_fft")
    _refuse(options | {"resblock": str(options.get("resblock", "1"))}, "vocoder", {"resblock": "1", "win_size": n_fft})
    rates, hop_length = need(options, "upsample_rates"), need(options, "hop_size")
    if prod(rates) != hop_length:
        warnings.warn(
            f"the vocoder makes {prod(rates)} samples (upsample_rates {rates}) of a frame of hop_size {hop_length}",
            stacklevel=3,
        )
    sample_rate, n_mels = need(options, "sampling_rate"), need(options, "num_mels")
    n_frames = config.get("preprocessing", {}).get("mel", {}).get("target_length", 1024)
    mel = MelConfig(
        sample_rate=sample_rate,
        n_fft=n_fft,
        hop_length=hop_length,
        n_mels=n_mels,
        f_min=float(need(options, "fmin")),
        f_max=float(need(options, "fmax")),
        clip_s=n_frames * hop_length / sample_rate,
    )
    copied = ("upsample_rates", "upsample_kernel_sizes", "upsample_initial_channel")
    copied += ("resblock_kernel_sizes", "resblock_dilation_sizes")
    return {name: need(options, name) for name in copied} | {
        "model_in_dim": n_mels,
        "sampling_rate": sample_rate,
        "normalize_before": False,
        "mel": mel_to_dict(mel),
    }


def clap_config(options: Config, fused: bool = False) -> dict[str, Any]:
    """Arguments of ``transformers.ClapConfig``.

    ``fused``: whether there is feature fusion, where the options do not say so (LAION's model JSONs never do).
    """
    fused = options.get("enable_fusion", fused)
    if fused:
        _refuse(options, "clap", {"fusion_type": "aff_2d"})
    audio = need(options, "audio_cfg")
    _refuse(audio, "clap.audio_cfg", {"model_type": "HTSAT"})
    _refuse(options.get("text_cfg", {}), "clap.text_cfg", {"model_type": "roberta"})
    htsat = options.get("htsat") or HTSAT.get(audio.get("model_name"))
    if htsat is None:
        raise ValueError(
            f"clap.audio_cfg.model_name must be one of {sorted(HTSAT)}, or htsat must give the sizes; "
            f"got {audio.get('model_name')!r}"
        )
    projection = options.get("joint_embed_shape", 512)
    text_options = ROBERTA_BASE | options.get("roberta", {})
    copied = ("spec_size", "patch_size", "patch_stride", "window_size", "mlp_ratio", "qkv_bias")
    return {
        "projection_dim": projection,
        "text_config": {"projection_dim": projection} | text_options,
        "audio_config": {name: htsat[name] for name in copied if name in htsat}
        | {
            "projection_dim": projection,
            "num_mel_bins": need(audio, "mel_bins"),
            "patch_embeds_hidden_size": need(htsat, "embed_dim"),
            "hidden_size": need(htsat, "embed_dim") * 2 ** (len(need(htsat, "depths")) - 1),
            "depths": need(htsat, "depths"),
            "num_attention_heads": need(htsat, "num_heads"),
            "enable_fusion": fused,
        },
    }


def of_clap_module(module: nn.Module) -> Config | None:
    """The configuration that a ``laion_clap.CLAP_Module`` carries, with its text tower's own sizes."""
    options = getattr(module, "model_cfg", None)
    text_tower = getattr(getattr(module, "model", None), "text_branch", None)
    if options is None or not hasattr(text_tower, "config"):
        return options
    return {**options, "roberta": {name: getattr(text_tower.config, name) for name in ROBERTA_OPTIONS}}


def scheduler_config(config: Config) -> dict[str, Any] | None:
    """Arguments of ``diffusers.DDIMScheduler`` for the original's schedule and time steps; None if it names none."""
    params = need(config, "model.params")
    if "linear_start" not in params:
        return None
    _refuse(params, "model.params", {"beta_schedule": "linear"})  # of the square roots
    parameterization = params.get("parameterization", "eps")
    predictions = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    if parameterization not in predictions:
        raise ValueError(
            f"model.params.parameterization must be one of {sorted(predictions)}, got {parameterization!r}"
        )
    return {
        "num_train_timesteps": need(params, "timesteps"),
        "beta_start": need(params, "linear_start"),
        "beta_end": need(params, "linear_end"),
        "beta_schedule": "scaled_linear",
        "prediction_type": predictions[parameterization],
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "clip_sample": False,
        "set_alpha_to_one": False,
    }
