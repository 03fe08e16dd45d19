"""Where the time of ten seconds of music goes at the published size, stage by stage and format by format.

    python -m benchmarks.stages --out benchmarks/results/stages.json

One guided step of the UNet (with diffusers' own attention and with the package's), the VAE's decoder, the vocoder; and
a plain matrix product, whose rate bounds what convolutions and projections can reach. Of the decoders in bfloat16,
those with exceptions are what `optimize` makes (`benchmarks.rounding` says why).
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.original import EMBEDDING, LATENT_FRAMES, as_diffusers_has_it, original_pipeline
from benchmarks.results import keep
from benchmarks.timing import in_turns
from musicldm.kernels.precision import lower_decoders

PRODUCT = 2048


def gflop(function) -> float:
    """What torch counts of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def matrix_rate(dtype: torch.dtype) -> float:
    """GFLOP in a second of processor time."""
    a, b = (torch.randn(PRODUCT, PRODUCT).to(dtype) for _ in range(2))
    times = in_turns({"product": lambda: a @ b}, 5)
    return 2e-9 * PRODUCT**3 / times["product"]["processor_s"]["median"]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = original_pipeline()
    unet, vae, vocoder = pipeline.unet, pipeline.vae, pipeline.vocoder
    bands = vocoder.config.model_in_dim // pipeline.vae_scale_factor
    latents = torch.randn(2, unet.config.in_channels, LATENT_FRAMES, bands)
    embedding, mel = torch.randn(2, EMBEDDING), torch.randn(1, 4 * LATENT_FRAMES, vocoder.config.model_in_dim)

    def step(unet) -> None:
        unet(latents.to(unet.dtype), 500, encoder_hidden_states=None, class_labels=embedding.to(unet.dtype))

    def in_bfloat16(module: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.Module.to(copy.deepcopy(module), torch.bfloat16)

    channels_last = copy.deepcopy(vae).to(memory_format=torch.channels_last)
    near_vae, near_vocoder = copy.deepcopy(channels_last), copy.deepcopy(vocoder)
    lower_decoders(near_vae, near_vocoder, torch.bfloat16)
    stages = {
        "unet": {
            "diffusers float32": partial(step, as_diffusers_has_it(unet)),
            "float32": partial(step, unet),
            "bfloat16": partial(step, in_bfloat16(unet)),
        },
        "vae": {
            "diffusers float32": partial(vae.decode, latents[:1]),
            "float32, channels last": partial(channels_last.decode, latents[:1]),
            "bfloat16 but the end, channels last": partial(near_vae.decode, latents[:1]),
            "bfloat16, channels last": partial(in_bfloat16(channels_last).decode, latents[:1].bfloat16()),
        },
        "vocoder": {
            "diffusers float32": partial(vocoder, mel),
            "bfloat16 but the first level": partial(near_vocoder, mel),
            "bfloat16": partial(in_bfloat16(vocoder), mel.bfloat16()),
        },
    }
    rates = {str(dtype).removeprefix("torch."): matrix_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    print(", ".join(f"{dtype} products: {rate:.0f} GFLOP/s" for dtype, rate in rates.items()))
    results = {}
    for stage, functions in stages.items():
        work = gflop(functions["diffusers float32"])
        results[stage] = in_turns(functions, arguments.repetitions)
        for name, times in results[stage].items():
            seconds = times["processor_s"]["median"]
            share = work / seconds / rates["bfloat16" if "bfloat16" in name else "float32"]
            times |= {"gflop": work, "share_of_matrix_rate": share}
            print(f"{stage:8} {name:36} {seconds:6.2f} s, {100 * share:.0f} % of the products' rate", flush=True)
    if arguments.out:
        stages = {"threads": arguments.threads, "gflop_per_s": rates, "times": results}
        keep(arguments.out, {"stages": stages})


if __name__ == "__main__":
    main()
