"""Ten seconds of music on a GPU at the published size: this package against diffusers' pipeline on the same weights.

    python -m benchmarks.generate_gpu --out benchmarks/results/generate_gpu.json

Needs a CUDA device. Equal steps, float16, random weights, the same embeddings and noise; "diffusers" is its pipeline
with torch's attention, "plain" ours as loaded, "optimized" ours after `optimize()`: fused projections, steps as CUDA
graphs, both with the attention kernel. Batches are equal prompts in one call. The clock runs from the call until the
waveform is on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from functools import partial
from pathlib import Path

import diffusers
import torch

from benchmarks.generate import SECONDS
from benchmarks.original import EMBEDDING, as_diffusers_has_it, original_pipeline
from benchmarks.results import keep

STEPS = 20
BATCHES = (1, 8, 32)
REPETITIONS = 5


def make_pipelines(device: str, dtype: torch.dtype) -> dict[str, diffusers.DiffusionPipeline]:
    """diffusers' pipeline and ours, plain and optimized, with the same weights on ``device``."""
    ours = original_pipeline()
    copies = [{name: copy.deepcopy(getattr(ours, name)) for name in ("vae", "vocoder", "unet")} for _ in range(3)]
    copies[0]["unet"] = as_diffusers_has_it(copies[0]["unet"])
    made = {"diffusers": diffusers.MusicLDMPipeline(**ours.components | copies[0])}
    made["plain"] = type(ours)(**ours.components | copies[1])
    made["optimized"] = type(ours)(**ours.components | copies[2])
    for pipeline in made.values():
        pipeline.to(device, dtype).set_progress_bar_config(disable=True)
    made["optimized"].optimize()
    return made


def play(pipeline, embeddings: torch.Tensor, batch: int, steps: int) -> torch.Tensor:
    """Waveforms (B, L) on the CPU."""
    return pipeline(
        prompt_embeds=embeddings[:1].expand(batch, -1),
        negative_prompt_embeds=embeddings[1:].expand(batch, -1),
        audio_length_in_s=SECONDS,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).audios.cpu()


def measure(pipelines: dict, embeddings: torch.Tensor, batch: int, steps: int, repetitions: int) -> dict:
    """Clock times of each pipeline in turns, their peak memory, and how far the results lie apart."""
    times, peaks, waveforms = {name: [] for name in pipelines}, {}, {}
    for pipeline in pipelines.values():
        play(pipeline, embeddings, batch, steps)  # records, and lets cuDNN choose
    for _ in range(repetitions):
        for name, pipeline in pipelines.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            waveforms[name] = play(pipeline, embeddings, batch, steps).float()
            times[name].append(time.perf_counter() - began)
            peaks[name] = torch.cuda.max_memory_allocated()
    medians = {name: statistics.median(values) for name, values in times.items()}
    exact = waveforms["diffusers"]
    return {
        "batch": batch,
        "seconds": medians,
        "spread": {name: [min(values), max(values)] for name, values in times.items()},
        "times_faster": {name: medians["diffusers"] / value for name, value in medians.items()},
        "music_seconds_per_second": {name: batch * SECONDS / value for name, value in medians.items()},
        "peak_bytes_of_all_pipelines": peaks,
        "relative_difference": {name: ((w - exact).norm() / exact.norm()).item() for name, w in waveforms.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this needs a CUDA device")
    dtype = torch.float16
    pipelines = make_pipelines("cuda", dtype)
    embeddings = torch.nn.functional.normalize(torch.randn(2, EMBEDDING), dim=-1).to("cuda", dtype)
    run = partial(measure, pipelines, embeddings, steps=arguments.steps, repetitions=arguments.repetitions)
    rows = [run(batch) for batch in arguments.batches]
    for row in rows:
        for name, value in row["seconds"].items():
            print(f"batch {row['batch']:3} {name:10} {value:.3f} s, {row['times_faster'][name]:.2f} x diffusers")
    if arguments.out:
        keep(arguments.out, {"steps": arguments.steps, "dtype": str(dtype), "calls": rows})


if __name__ == "__main__":
    main()
