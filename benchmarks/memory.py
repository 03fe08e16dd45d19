"""Peak memory of decoding, at once and in pieces, against what is announced; and that the results agree.

    python -m benchmarks.memory --out benchmarks/results/memory.json

Each case runs in a process of its own, whose greatest resident memory is compared with that before decoding.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.results import keep
from musicldm import tiles
from musicldm.inputs import decoding_memory
from musicldm.pipeline import MusicLDMPipeline

CASES = [(30, "whole"), (30, "pieces"), (600, "pieces")]  # seconds of music
UNITS = 1024 if sys.platform == "linux" else 1  # of ru_maxrss, in bytes


def peak() -> int:
    """The greatest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNITS


@torch.no_grad()
def case(model: str, seconds: float, how: str) -> dict:
    """Decode random latents of that length with a pipeline's VAE and vocoder."""
    pipeline = MusicLDMPipeline.from_pretrained(model)
    frames = round(seconds * pipeline.sampling_rate) // (tiles.samples_of_a_frame(pipeline.vocoder))
    frames //= pipeline.vae_scale_factor
    bands = pipeline.vocoder.config.model_in_dim // pipeline.vae_scale_factor
    shape = (1, pipeline.vae.config.latent_channels, frames, bands)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tiles.LONGEST_WHOLE = 0 if how == "pieces" else 10**9
    announced = decoding_memory(pipeline.vae, pipeline.vocoder, shape)
    before = peak()
    waveform = pipeline.vocode(pipeline.decode_latents(latents))
    result = {"seconds": seconds, "how": how, "bytes": peak() - before, "process_bytes": peak(), "announced": announced}
    if seconds < 60 and how == "pieces":
        tiles.LONGEST_WHOLE = 10**9
        whole = pipeline.vocode(pipeline.decode_latents(latents))
        result["largest_difference"] = (waveform - whole).abs().max().item()
        result["standard_deviation"] = whole.std().item()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--case", nargs=2, metavar=("SECONDS", "HOW"), help="one case, as JSON on stdout")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(case(arguments.model, float(arguments.case[0]), arguments.case[1])))
        return
    rows = []
    for seconds, how in CASES:
        command = [sys.executable, "-m", "benchmarks.memory", "--model", arguments.model, "--case", str(seconds), how]
        made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(made.stdout.splitlines()[-1]))
        used, announced = rows[-1]["bytes"] / 2**30, rows[-1]["announced"] / 2**30
        print(f"{seconds:5} s, {how:6}: {used:.2f} GiB, announced {announced:.2f} GiB", flush=True)
    if arguments.out:
        keep(arguments.out, {"decoding": {"model": arguments.model, "cases": rows}})


if __name__ == "__main__":
    main()
