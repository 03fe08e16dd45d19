"""Tiny real models: the classes, structure and connections of the released ones, at sizes that run in milliseconds.

8 kHz, 16 mel bands, 0.32 s: nothing here has the released model's rates and sizes, so whatever assumes them fails.
"""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import ClapConfig, ClapModel

from musicldm.models.context import KINDS, add_context
from vocoder import MelConfig

CAPTIONS = [
    "a slow waltz for solo piano",
    "fast drums and electric bass, 140 BPM",
    "a string quartet in C minor",
    "calm solo flute with a harp",
]
EMBEDDING = 24  # D
MEL = MelConfig(sample_rate=8000, n_fft=256, hop_length=80, n_mels=16, f_max=4000.0, clip_s=0.32)


def make_unet(**changes) -> UNet2DConditionModel:
    """A UNet of two levels, conditioned like MusicLDM's; ``changes`` to its configuration."""
    unet = UNet2DConditionModel.from_config(
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [8, 16],
            "cross_attention_dim": [8, 16],
            "attention_head_dim": [2, 4],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "class_embed_type": "simple_projection",
            "class_embeddings_concat": True,
            "projection_class_embeddings_input_dim": EMBEDDING,
        }
        | changes
    ).eval()
    with torch.no_grad():
        unet.class_embedding.weight.mul_(10)  # fresh weights hardly hear the condition
    return unet


def make_context_unet(kinds: tuple[str, ...] = KINDS) -> UNet2DConditionModel:
    """The same with channels for a context, which it hears."""
    unet = make_unet()
    add_context(unet, kinds)
    with torch.no_grad():
        unet.conv_in.weight[:, 4:].normal_(0, 0.3)
    return unet


def make_vae() -> AutoencoderKL:
    """A VAE of three levels, hence of factor 4."""
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.8,
    ).eval()


def make_clap(vocab_size: int) -> ClapModel:
    """CLAP with a text tower of one layer and an audio tower of two stages."""
    config = ClapConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 66,
        },
        audio_config={
            "spec_size": 64,
            "num_mel_bins": 16,
            "window_size": 4,
            "patch_embeds_hidden_size": 8,
            "depths": [2, 2],
            "num_attention_heads": [1, 2],
            "hidden_size": 16,
        },
        projection_dim=EMBEDDING,
    )
    clap = ClapModel(config).eval()
    with torch.no_grad():
        for name, weight in clap.named_parameters():
            if weight.ndim > 1:  # fresh weights give nearly the same vector for everything
                weight.mul_(10 if "text_model" in name or "projection" in name else 3)
    return clap
