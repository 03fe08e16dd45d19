"""Memory of one step of an adapter and of a concept at the published size, batch 1, as the trainers announce it.

    python -m benchmarks.adapter_memory --out benchmarks/results/adapter_memory.json

Activations are counted in one forward pass of a UNet with random weights on the CPU, bfloat16 autocast; to them come
the weights in float32 with what the optimiser keeps of the trained ones, autocast's bfloat16 copies, and CLAP and the
VAE, which stay on the device. What a GPU's kernels and allocator add is not in it, and no GPU has shown it.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.original import EMBEDDING, LATENT_FRAMES, original_config
from benchmarks.results import keep
from musicldm.config import DiffusionConfig, LoraConfig, VAEConfig
from musicldm.models.adapters import add_adapter
from musicldm.train.diffusion.stage import make_unet
from musicldm.train.log import try_once
from musicldm.train.vae import make_vae

RANKS = {"adapter": 16, "concept": 4}
COPIES = 5  # weights, gradient, two moments of AdamW, average
CLAP_PARAMETERS = 194e6  # of the released one


def case(kind: str, checkpointing: bool, accelerator: Accelerator) -> dict[str, float]:
    """Bytes by what holds them, and seconds of a forward and a backward pass here."""
    torch.manual_seed(0)
    sizes = original_config(VAEConfig, "vae")
    unet = make_unet(original_config(DiffusionConfig, "diffusion"), sizes.latent_channels, LATENT_FRAMES, EMBEDDING)
    add_adapter(unet, LoraConfig(rank=RANKS[kind]))
    if checkpointing:
        unet.enable_gradient_checkpointing()
    items = 2 if kind == "concept" else 1  # a concept's step also asks for other music
    noisy = torch.randn(items, sizes.latent_channels, LATENT_FRAMES, sizes.mel.n_mels // sizes.factor)
    condition = nn.functional.normalize(torch.randn(items, EMBEDDING), dim=-1)

    def trial() -> Tensor:
        unet.train()  # checkpointing works in training only; there is no dropout
        time_of = torch.full((items,), 500)
        return unet(noisy, time_of, encoder_hidden_states=None, class_labels=condition).sample.square().mean()

    since = time.process_time()
    activations, _ = try_once([unet], trial, accelerator)
    seconds = (time.process_time() - since) / 2
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in unet.parameters() if not p.requires_grad)
    others = CLAP_PARAMETERS + sum(p.numel() for p in make_vae(sizes).parameters())
    held = {
        "activations": activations,
        "unet": 4 * frozen,
        "unet_in_bfloat16": 2 * frozen,
        "adapter": 4 * COPIES * trained,
        "clap_and_vae": 4 * others,
    }
    return {
        "rank": RANKS[kind],
        "adapter_parameters": trained,
        "gib": {name: value / 2**30 for name, value in held.items()} | {"sum": sum(held.values()) / 2**30},
        "processor_s_forward_and_backward": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    results = {}
    for kind in RANKS:
        for checkpointing in (True, False):
            name = kind + (", gradient checkpointing" if checkpointing else "")
            results[name] = case(kind, checkpointing, accelerator)
            print(name, {part: round(value, 2) for part, value in results[name]["gib"].items()}, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    if arguments.out:
        keep(arguments.out, {"steps": results, "peak_gib_of_this_process": peak})


if __name__ == "__main__":
    main()
