"""Names of parameters: what diffusers and transformers call them -> what the original checkpoints call them.

Each table maps a module's path to the original's; longer paths win, and what no entry covers has the same name.
``NAME#i`` stands for the i-th third of NAME's rows (query, key and value in one matrix).
"""

from collections.abc import Mapping
from typing import Any

Names = dict[str, str]

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
HTSAT_BLOCK = {
    "layernorm_before": "norm1",
    "attention.self": "attn",
    "attention.self.query": "attn.qkv#0",
    "attention.self.key": "attn.qkv#1",
    "attention.self.value": "attn.qkv#2",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
VOCODER_NAMES: Names = {"upsampler": "ups"}


def original_name(name: str, table: Names) -> str:
    """The original's name of the parameter ``name``."""
    parts = name.split(".")
    for n in range(len(parts) - 1, 0, -1):
        if (head := ".".join(parts[:n])) in table:
            return ".".join([table[head], *parts[n:]])
    return name


def averaged_name(original: str) -> str:
    """Where a full checkpoint keeps the average of the UNet's parameter ``original``: without any dots."""
    return "model_ema." + f"diffusion_model.{original}".replace(".", "")


def _inside(ours: str, theirs: str, inner: Names) -> Names:
    return {ours: theirs} | {f"{ours}.{key}": f"{theirs}.{value}" for key, value in inner.items()}


def unet_names(config: Mapping[str, Any]) -> Names:
    """For a ``UNet2DConditionModel`` of this config; the original numbers its blocks in the order of use."""
    attends = [block == "CrossAttnDownBlock2D" for block in config["down_block_types"]]
    layers, levels = config["layers_per_block"], len(attends)
    table = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "class_embedding": "film_emb",
        "mid_block.attentions.0": "middle_block.1",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    table |= _inside("mid_block.resnets.0", "middle_block.0", UNET_RESNET)
    table |= _inside("mid_block.resnets.1", "middle_block.2", UNET_RESNET)
    number = 1
    for level in range(levels):
        for layer in range(layers):
            table |= _inside(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{number}.0", UNET_RESNET)
            table[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if level < levels - 1:
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for block in range(levels):
        attention = attends[levels - 1 - block]
        for layer in range(layers + 1):
            table |= _inside(f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{number}.0", UNET_RESNET)
            table[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        table[f"up_blocks.{block}.upsamplers.0"] = f"output_blocks.{number - 1}.{2 if attention else 1}"
    return table


def vae_names(config: Mapping[str, Any]) -> Names:
    """For an ``AutoencoderKL`` of this config; the original numbers the decoder's levels by resolution."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    table = {}
    for coder in ("encoder", "decoder"):
        table[f"{coder}.conv_norm_out"] = f"{coder}.norm_out"
        table[f"{coder}.mid_block.resnets.0"] = f"{coder}.mid.block_1"
        table[f"{coder}.mid_block.resnets.1"] = f"{coder}.mid.block_2"
        table |= _inside(f"{coder}.mid_block.attentions.0", f"{coder}.mid.attn_1", VAE_ATTENTION)
    for i in range(levels):
        down, up = f"encoder.down.{i}", f"decoder.up.{levels - 1 - i}"
        for layer in range(layers):
            table |= _inside(
                f"encoder.down_blocks.{i}.resnets.{layer}", f"{down}.block.{layer}", {"conv_shortcut": "nin_shortcut"}
            )
        for layer in range(layers + 1):
            table |= _inside(
                f"decoder.up_blocks.{i}.resnets.{layer}", f"{up}.block.{layer}", {"conv_shortcut": "nin_shortcut"}
            )
        table[f"encoder.down_blocks.{i}.downsamplers.0"] = f"{down}.downsample"
        table[f"decoder.up_blocks.{i}.upsamplers.0"] = f"{up}.upsample"
    return table


def clap_names(depths: list[int]) -> Names:
    """For a ``ClapModel`` whose audio tower has these many blocks in its stages."""
    audio = "audio_model.audio_encoder"
    table = {
        "text_model": "text_branch",
        audio: "audio_branch",
        f"{audio}.batch_norm": "audio_branch.bn0",
    }
    for tower in ("text", "audio"):
        table |= _inside(f"{tower}_projection", f"{tower}_projection", {"linear1": "0", "linear2": "2"})
    for stage, depth in enumerate(depths):
        for block in range(depth):
            path = f"layers.{stage}.blocks.{block}"
            table |= _inside(f"{audio}.{path}", f"audio_branch.{path}", HTSAT_BLOCK)
    return table
