"""A pipeline of the published model's size with random weights, for timing."""

from __future__ import annotations

import copy

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from musicldm.config import CLAPConfig, DiffusionConfig, VAEConfig, VocoderConfig, find_config, load_config
from musicldm.models.clap import train_tokenizer
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.train.clap import make_clap, make_feature_extractor
from musicldm.train.diffusion.stage import make_unet
from musicldm.train.vae import make_vae
from vocoder import make_generator

EMBEDDING, LATENT_FRAMES = 512, 256  # for 10.24 s


def original_config(schema: type, stage: str, size: str = "original"):
    """The bundled configuration of the published size, or of another."""
    return load_config(schema, find_config(size, stage))


def original_pipeline(size: str = "original") -> MusicLDMPipeline:
    """UNet, VAE and vocoder of the published size, or of another; a small CLAP, which is not timed here."""
    torch.manual_seed(0)
    vae = make_vae(original_config(VAEConfig, "vae", size))
    diffusion = original_config(DiffusionConfig, "diffusion", size)
    sizes = original_config(VocoderConfig, "vocoder", size)
    generator = make_generator(sizes.mel, sizes.channels, sizes.upsample_rates, sizes.upsample_kernel_sizes)
    unet = make_unet(diffusion, vae.config.latent_channels, LATENT_FRAMES, EMBEDDING)
    scheduler = DDIMScheduler(
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    clap, tokenizer = original_config(CLAPConfig, "clap", "tiny"), train_tokenizer(["a slow piece for harp"] * 9, 300)
    pipeline = MusicLDMPipeline(
        vae=vae.eval(),
        text_encoder=make_clap(clap, len(tokenizer)).eval(),
        tokenizer=tokenizer,
        feature_extractor=make_feature_extractor(clap),
        unet=unet.eval(),
        scheduler=scheduler,
        vocoder=generator.eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def as_diffusers_has_it(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy with diffusers' own attention."""
    unet = copy.deepcopy(unet)
    unet.set_attn_processor(AttnProcessor2_0())
    return unet
