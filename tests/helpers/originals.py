"""Checkpoints in the original layout, of any size, made from random modules."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import ClapConfig, ClapModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

from musicldm.models.original import config_map
from musicldm.models.original.key_map import (
    VOCODER_NAMES,
    averaged_name,
    clap_names,
    original_name,
    unet_names,
    vae_names,
)

UNET, VAE, VOCODER, CLAP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "first_stage_model.vocoder.",
    "cond_stage_model.model.",
)


def config_of(width=32, multipliers=(1, 2), attention=(2,), res_blocks=1, head_width=16, vae_multipliers=(1, 2)):
    unet = {
        "extra_film_condition_dim": 24,
        "extra_film_use_concat": True,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": width,
        "attention_resolutions": list(attention),
        "num_res_blocks": res_blocks,
        "channel_mult": list(multipliers),
        "num_head_channels": head_width,
        "use_spatial_transformer": True,
    }
    vae = {
        "double_z": True,
        "z_channels": 4,
        "in_channels": 1,
        "out_ch": 1,
        "ch": 32,
        "ch_mult": list(vae_multipliers),
        "num_res_blocks": res_blocks,
        "attn_resolutions": [],
    }
    return {
        "preprocessing": {"mel": {"target_length": 200}},
        "model": {
            "params": {
                "linear_start": 0.001,
                "linear_end": 0.02,
                "timesteps": 500,
                "latent_t_size": 64,
                "unet_config": {"params": unet},
                "first_stage_config": {"params": {"embed_dim": 4, "ddconfig": vae}},
            }
        },
    }


VOCODER_CONFIG = {
    "resblock": "1",
    "upsample_rates": [4, 5],
    "upsample_kernel_sizes": [8, 11],
    "upsample_initial_channel": 12,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 2], [1, 3]],
    "num_mels": 10,
    "n_fft": 64,
    "hop_size": 20,
    "sampling_rate": 8000,
    "fmin": 30,
    "fmax": 3500,
}
CLAP_CONFIG = {
    "joint_embed_shape": 24,
    "enable_fusion": False,
    "audio_cfg": {
        "model_type": "HTSAT",
        "model_name": "other",
        "sample_rate": 8000,
        "clip_samples": 16000,
        "mel_bins": 16,
        "window_size": 128,
        "hop_size": 80,
        "fmin": 50,
        "fmax": 4000,
    },
    "htsat": {"spec_size": 64, "embed_dim": 8, "depths": [1, 3, 2], "num_heads": [1, 2, 4], "window_size": 4},
    "roberta": {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "max_position_embeddings": 18,
    },
}
SIZES = {
    "two levels": config_of(),
    "three levels, deep": config_of(64, (1, 1, 3), (1, 4), 3, 32, (1, 1, 2, 2)),
    "attention in the middle only": config_of(32, (1, 2, 4), (), 2, 8, (1,)),
}


def randomised(parts):
    """All weights of a set of modules random, so that an exchange shows."""
    generator = torch.Generator().manual_seed(1)
    for part in ("unet", "vae", "vocoder", "clap"):
        for parameter in parts[part].parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return parts


def to_original(module, table, prefix):
    """A module's weights under the original's names; query, key and value joined again."""
    state, thirds = {}, {}
    for name, value in module.state_dict().items():
        key, _, third = original_name(name, table).partition("#")
        if third:
            thirds.setdefault(prefix + key + third[1:], {})[int(third[0])] = value
        elif isinstance(module, AutoencoderKL) and "attn_1" in key and value.ndim == 2:
            state[prefix + key] = value[..., None, None]
        elif not (isinstance(module, SpeechT5HifiGan) and key in ("mean", "scale")):
            state[prefix + key] = value
    return state | {key: torch.cat([values[i] for i in range(3)]) for key, values in thirds.items()}


def full_checkpoint(parts):
    unet = to_original(parts["unet"], unet_names(parts["unet"].config), "")
    state = {UNET + key: value for key, value in unet.items()}
    state |= {averaged_name(key): 2 * value for key, value in unet.items()}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    state |= to_original(parts["vae"], vae_names(parts["vae"].config), VAE)
    state |= {VAE + "loss.logvar": torch.zeros(()), "betas": torch.zeros(500), "logvar": torch.zeros(500)}
    state |= to_original(parts["vocoder"], VOCODER_NAMES, VOCODER)
    state |= to_original(parts["clap"], clap_names(parts["clap"].config.audio_config.depths), CLAP)
    return state | {"scale_factor": torch.tensor(0.75)}


def fresh(config):
    """Random modules of these sizes."""
    return randomised(
        {
            "unet": UNet2DConditionModel(**config_map.unet_config(config)),
            "vae": AutoencoderKL(**config_map.vae_config(config, 0.75)),
            "vocoder": SpeechT5HifiGan(SpeechT5HifiGanConfig(**config_map.vocoder_config(VOCODER_CONFIG, config))),
            "clap": ClapModel(ClapConfig(**config_map.clap_config(CLAP_CONFIG))),
            "scheduler": DDIMScheduler(**config_map.scheduler_config(config)),
        }
    )


def assert_equal_weights(loaded, expected, factor=1.0):
    expected = expected.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        reference = factor * expected[name] if value.is_floating_point() else expected[name]
        assert torch.equal(value, reference), name
