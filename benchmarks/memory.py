"""Peak memory of decoding, at once and in pieces, against what is announced; and that the results agree.

    python -m benchmarks.memory --out benchmarks/results/memory.json
    python -m benchmarks.memory --model original --repetitions 1 --out benchmarks/results/memory.json

Each case runs in processes of their own, whose greatest resident memory is compared with that before decoding. The
published size has random weights, and two minutes in pieces only: ten would take half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.original import original_pipeline
from benchmarks.results import keep
from musicldm.kernels import tiled_decoding as tiles
from musicldm.pipelines.memory import decoding_memory
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from vocoder import mel_config

CASES = [(30, "whole"), (30, "pieces"), (600, "pieces")]  # seconds of music
ORIGINAL, ORIGINAL_CASES = "original", [(120, "pieces")]
UNITS = 1024 if sys.platform == "linux" else 1  # of ru_maxrss, in bytes


def peak() -> int:
    """The greatest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose getrusage begins with what the parent had when it started the process
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNITS


@torch.no_grad()
def case(model: str, seconds: float, how: str) -> dict:
    """Decode random latents of that length with a pipeline's VAE and vocoder."""
    pipeline = original_pipeline() if model == ORIGINAL else MusicLDMPipeline.from_pretrained(model)
    frames = round(seconds * pipeline.sampling_rate) // mel_config(pipeline.vocoder).hop_length
    frames //= pipeline.vae_scale_factor
    bands = pipeline.vocoder.config.model_in_dim // pipeline.vae_scale_factor
    shape = (1, pipeline.vae.config.latent_channels, frames, bands)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tiles.LONGEST_WHOLE = 0 if how == "pieces" else 10**9
    announced = decoding_memory(pipeline.vae, pipeline.vocoder, shape, pipeline.device)
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # what loading took at its peak does not count
    before = peak()
    waveform = pipeline.vocode(pipeline.decode_latents(latents))
    result = {"bytes": peak() - before, "process_bytes": peak(), "announced": announced}
    if seconds < 60 and how == "pieces":
        tiles.LONGEST_WHOLE = 10**9
        whole = pipeline.vocode(pipeline.decode_latents(latents))
        result["largest_difference"] = (waveform - whole).abs().max().item()
        result["standard_deviation"] = whole.std().item()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="a folder, or 'original' for the published size")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--case", nargs=2, metavar=("SECONDS", "HOW"), help="one case, as JSON on stdout")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(case(arguments.model, float(arguments.case[0]), arguments.case[1])))
        return
    rows = []
    for seconds, how in ORIGINAL_CASES if arguments.model == ORIGINAL else CASES:
        command = [sys.executable, "-m", "benchmarks.memory", "--model", arguments.model, "--case", str(seconds), how]
        found = []
        for _ in range(arguments.repetitions):
            made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.append(json.loads(made.stdout.splitlines()[-1]))
        used = [each["bytes"] for each in found]
        spread = {"median": statistics.median(used), "least": min(used), "greatest": max(used)}
        rows.append({"seconds": seconds, "how": how} | found[-1] | {"bytes": spread})
        low, median, high = (spread[name] / 2**30 for name in ("least", "median", "greatest"))
        announced = found[-1]["announced"] / 2**30
        print(f"{seconds} s, {how}: {median:.2f} GiB ({low:.2f} to {high:.2f}), announced {announced:.2f}", flush=True)
    if arguments.out:
        keep(arguments.out, {f"decoding, {arguments.model}": {"repetitions": arguments.repetitions, "cases": rows}})


if __name__ == "__main__":
    main()
