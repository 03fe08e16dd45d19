"""A pipeline of the published model's size with random weights, for timing."""

from __future__ import annotations

import copy

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from musicldm.config import DiffusionConfig, VAEConfig, VocoderConfig, find_config, load_config
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.train.diffusion.stage import make_unet
from musicldm.train.vae import make_vae
from vocoder import make_generator

EMBEDDING, LATENT_FRAMES = 512, 256  # for 10.24 s


def original_config(schema: type, stage: str):
    """The bundled configuration of the published size."""
    return load_config(schema, find_config("original", stage))


def original_pipeline() -> MusicLDMPipeline:
    """UNet, VAE and vocoder of the published size; CLAP, which is not timed here, of the bundled model."""
    torch.manual_seed(0)
    vae = make_vae(original_config(VAEConfig, "vae"))
    diffusion, sizes = original_config(DiffusionConfig, "diffusion"), original_config(VocoderConfig, "vocoder")
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
    parts = {"unet": unet.eval(), "vae": vae.eval(), "vocoder": generator.eval(), "scheduler": scheduler}
    pipeline = MusicLDMPipeline.from_pretrained("mini", **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def as_diffusers_has_it(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy with diffusers' own attention."""
    unet = copy.deepcopy(unet)
    unet.set_attn_processor(AttnProcessor2_0())
    return unet
