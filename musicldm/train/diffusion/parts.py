"""The trained models that the configuration of the diffusion model names, and what they say of their training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import SpeechT5HifiGan

from musicldm.config import DiffusionConfig, VAEConfig, load_config
from musicldm.models.latents import latent_shape
from musicldm.train.common import check_mel, initial_folder
from musicldm.train.diffusion.cache import Parts, load_conditioner
from musicldm.train.diffusion.objectives import trained_settings
from musicldm.train.run_folder import CONFIG_FILE
from vocoder import install_matching, mel_config


def initial_settings(config: DiffusionConfig) -> dict:
    """What the model ``init`` says of the noise that it was trained on; nothing of a UNet alone."""
    scheduler = initial_folder(config, "scheduler")
    return trained_settings(scheduler) if scheduler.name == "scheduler" else {}


def initial_scale(config: DiffusionConfig, vae: AutoencoderKL) -> float | None:
    """The factor of the latents that the UNet of ``config.init`` knows, which is in its model's own VAE.

    None of a UNet alone, or if the latents of ``vae`` are of another shape.
    """
    folder = initial_folder(config, "vae") if config.init else Path()
    if folder.name != "vae":
        return None
    with torch.device("meta"):  # for its configuration alone
        former = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    former_shape, shape = (latent_shape(each, config.mel, config.mel.clip_frames) for each in (former, vae))
    return former.config.scaling_factor if former_shape == shape else None


def of_initial(config: DiffusionConfig) -> DiffusionConfig:
    """The configuration with what the model ``init`` says of itself: its noise and its vocoder's spectrograms."""
    vocoder = SpeechT5HifiGan.from_pretrained(config.vocoder or initial_folder(config, "vocoder"))
    return replace(config, **initial_settings(config), mel=mel_config(vocoder))


def load_parts(config: DiffusionConfig) -> Parts:
    """The autoencoder, vocoder and CLAP that the configuration names, or those of the model ``init``.

    Raises:
        ValueError: a folder is not named, or parts were trained on different spectrograms.
        FileNotFoundError: a named folder does not exist.
    """
    folders = {}
    for name in ("vae", "clap", "vocoder"):
        if not (named := getattr(config, name)) and not config.init:
            raise ValueError(f"the diffusion model needs {name}=FOLDER, the final/ folder of that stage, or init=MODEL")
        folders[name] = Path(named) if named else initial_folder(config, name)
        if not folders[name].is_dir():
            raise FileNotFoundError(f"no trained {name} at {named}: train it first (musicldm train {name})")
    vocoder = install_matching(SpeechT5HifiGan.from_pretrained(folders["vocoder"]).float())
    check_mel("the vocoder", mel_config(vocoder), config)
    if (recorded := folders["vae"] / CONFIG_FILE).exists():
        check_mel("the VAE", load_config(VAEConfig, recorded).mel, config)
    vae = AutoencoderKL.from_pretrained(folders["vae"]).float()
    return Parts(vae, vocoder, load_conditioner(folders["clap"]))
