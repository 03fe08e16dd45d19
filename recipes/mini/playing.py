"""How the other commands here let a model play: the sampler of `musicldm generate`, clip i with seed i."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from tqdm import tqdm

from musicldm import MusicLDMPipeline
from musicldm.sampling.schedulers import GUIDANCE, GUIDANCE_INTERVAL, SAMPLER, STEPS, make_scheduler

AT_ONCE = 8  # clips


def add_sampler_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mini")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--interval", type=float, nargs=2, default=GUIDANCE_INTERVAL)
    parser.add_argument("--scheduler", default=SAMPLER)


def load_pipeline(arguments: argparse.Namespace) -> MusicLDMPipeline:
    pipeline = MusicLDMPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler(arguments.scheduler, pipeline.scheduler)
    return pipeline.optimize()


def play(
    pipeline: MusicLDMPipeline,
    prompts: list[str],
    seconds: float,
    steps: int,
    guidance: float,
    interval: Sequence[float] = GUIDANCE_INTERVAL,
) -> torch.Tensor:
    """Waveforms (N, L)."""
    waveforms = []
    options = {"audio_length_in_s": seconds, "num_inference_steps": steps, "guidance_scale": guidance}
    for first in tqdm(range(0, len(prompts), AT_ONCE), desc="generate"):
        some = prompts[first : first + AT_ONCE]
        output = pipeline(some, seed=first, guidance_interval=tuple(interval), output_type="pt", **options)
        waveforms.append(output.audios)
    return torch.cat(waveforms)
