"""Ten seconds of music at the published size: this package against diffusers' pipeline on the same weights.

    python -m benchmarks.generate --out benchmarks/results/generate.json

Random weights; diffusers gets embeddings, because its text path does not run with transformers 5, and the same number
of steps, the same noise and the head numbers of the published model. "float32" is `optimize(bfloat16=False)`,
"bfloat16" what `optimize()` makes of the pipeline where the processor has the instructions.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import diffusers
import torch

from benchmarks.original import EMBEDDING, as_diffusers_has_it, original_pipeline
from benchmarks.results import keep
from benchmarks.timing import in_turns, ratio
from musicldm.pipeline import MusicLDMPipeline

SECONDS = 10.24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    ours = original_pipeline()
    theirs = diffusers.MusicLDMPipeline(
        **ours.components | {"unet": as_diffusers_has_it(ours.unet), "vae": copy.deepcopy(ours.vae)}
    )
    theirs.set_progress_bar_config(disable=True)
    fast = MusicLDMPipeline(
        **ours.components | {name: copy.deepcopy(getattr(ours, name)) for name in ("unet", "vae", "vocoder")}
    )
    fast.set_progress_bar_config(disable=True)
    ours.optimize(bfloat16=False)
    fast.optimize(bfloat16=True)
    pipelines = {"diffusers float32": theirs, "float32": ours, "bfloat16": fast}

    embeddings = torch.nn.functional.normalize(torch.randn(2, EMBEDDING), dim=-1)
    waveforms = {}

    def call(name: str, pipeline) -> None:
        waveforms[name] = pipeline(
            prompt_embeds=embeddings[:1],
            negative_prompt_embeds=embeddings[1:],
            audio_length_in_s=SECONDS,
            num_inference_steps=arguments.steps,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).audios

    functions = {
        name: lambda name=name, pipeline=pipeline: call(name, pipeline) for name, pipeline in pipelines.items()
    }
    times = in_turns(functions, arguments.repetitions)
    exact = waveforms["diffusers float32"]
    result = {
        "steps": arguments.steps,
        "seconds_of_music": SECONDS,
        "threads": arguments.threads,
        "repetitions": arguments.repetitions,
        "times": times,
        "times_faster": {name: ratio(times, "diffusers float32", name) for name in ("float32", "bfloat16")},
        "largest_difference": {name: (waveforms[name] - exact).abs().max().item() for name in ("float32", "bfloat16")},
        "standard_deviation": exact.std().item(),
        "noise_prediction_off_by": deviation(ours.unet, fast.unet, embeddings),
    }
    for name, seconds in times.items():
        print(f"{name:18} {seconds['processor_s']['median']:7.2f} s of processor time")
    print(", ".join(f"{name} {value:.2f} x diffusers" for name, value in result["times_faster"].items()))
    if arguments.out:
        keep(arguments.out, {"generate": result})


@torch.no_grad()
def deviation(exact, fast, embeddings: torch.Tensor) -> float:
    """Relative difference of two UNets' predictions in the middle of the schedule."""
    latents = torch.randn(2, exact.config.in_channels, 256, 16)
    one, other = (
        unet(latents.to(unet.dtype), 500, encoder_hidden_states=None, class_labels=embeddings.to(unet.dtype)).sample
        for unet in (exact, fast)
    )
    return ((other - one).norm() / one.norm()).item()


if __name__ == "__main__":
    main()
