"""How many steps does it take? Error against a 1000-step reference, and CLAP's score, for several samplers.

    python -m benchmarks.samplers --out benchmarks/results/samplers.json

All runs start from the same noise. The error is relative, of the latents; the reference is Euler's method, which is
DDIM's, with 1000 steps: the same ordinary differential equation in the smallest steps that the model knows. Two more
rows leave guidance out of a part of the steps, which halves the work there.

Kynkäänniemi et al. (2024), Applying Guidance in a Limited Interval. https://arxiv.org/abs/2404.07724
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.results import keep
from musicldm import sampling
from musicldm.clap import embed_audio
from musicldm.pipeline import MusicLDMPipeline
from musicldm.schedulers import make_scheduler

PROMPTS = [
    "a calm piece for solo piano",
    "a fast rock band with drums and electric guitar",
    "a string quartet plays a calm waltz",
    "drums, funk, 100 BPM",
]
SAMPLERS = ("ddim", "dpm++", "unipc")
STEPS = (4, 8, 16, 25, 50, 100)
INTERVALS = {"guided in the first half": (0.0, 0.5), "guided in the middle": (0.2, 0.8)}  # shares of the steps
REFERENCE, REFERENCE_STEPS = "euler", 1000
GUIDANCE, INTERVAL_STEPS = 2.0, 25


def run(
    pipeline: MusicLDMPipeline, prompts: list[str], sampler: str, steps: int, interval: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Latents for all prompts, guided in ``interval`` of the steps."""
    trained_with = pipeline.scheduler
    pipeline.scheduler = make_scheduler(sampler, trained_with)
    try:
        if interval == (0.0, 1.0):
            return pipeline(
                prompts,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                seed=1,
                output_type="latent",
            ).audios
        return run_in_interval(pipeline, prompts, steps, interval)
    finally:
        pipeline.scheduler = trained_with


@torch.no_grad()
def run_in_interval(
    pipeline: MusicLDMPipeline, prompts: list[str], steps: int, interval: tuple[float, float]
) -> Tensor:
    """The same in three stretches, without and with guidance."""
    condition, unconditional = pipeline.encode_prompt(prompts)
    config = pipeline.unet.config
    bands = pipeline.vocoder.config.model_in_dim // pipeline.vae_scale_factor
    shape = (len(prompts), config.in_channels, config.sample_size, bands)
    scheduler, device = pipeline.scheduler, pipeline.unet.device
    timesteps = sampling.prepare_timesteps(scheduler, steps)
    generators = sampling.make_generators(1, None, len(prompts))
    latents = sampling.first_noise(scheduler, shape, torch.float32, device, generators)
    first, end = (round(share * steps) for share in interval)
    both = torch.cat([unconditional, condition])
    for part, embedding in ((slice(0, first), condition), (slice(first, end), both), (slice(end, None), condition)):
        latents = pipeline.denoise(latents, embedding, timesteps[part], GUIDANCE)
    return latents


@torch.no_grad()
def clap_score(pipeline: MusicLDMPipeline, prompts: list[str], latents: Tensor) -> float:
    """Mean cosine similarity of waveforms and their prompts."""
    waveforms = pipeline.vocode(pipeline.decode_latents(latents))
    heard = embed_audio(pipeline.text_encoder, pipeline.feature_extractor, waveforms, pipeline.sampling_rate)
    wanted = functional.normalize(pipeline.embed_texts(prompts), dim=-1)
    return (heard * wanted).sum(dim=1).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    prompts = PROMPTS[: arguments.prompts]
    pipeline = MusicLDMPipeline.from_pretrained(arguments.model).optimize(bfloat16=False)
    pipeline.set_progress_bar_config(disable=True)
    exact = run(pipeline, prompts, REFERENCE, REFERENCE_STEPS)
    rows = []

    def add(name: str, steps: int, evaluations: int, latents: Tensor) -> None:
        error = ((latents - exact).norm() / exact.norm()).item()
        score = clap_score(pipeline, prompts, latents)
        rows.append({"sampler": name, "steps": steps, "evaluations": evaluations, "error": error, "clap_score": score})
        print(f"{name:32} {steps:4} steps  error {error:.4f}  CLAP {score:.3f}", flush=True)

    add(REFERENCE, REFERENCE_STEPS, 2 * REFERENCE_STEPS, exact)
    for sampler in SAMPLERS:
        for steps in STEPS:
            add(sampler, steps, 2 * steps, run(pipeline, prompts, sampler, steps))
    for name, (first, end) in INTERVALS.items():
        guided = round(end * INTERVAL_STEPS) - round(first * INTERVAL_STEPS)
        latents = run(pipeline, prompts, "dpm++", INTERVAL_STEPS, (first, end))
        add(f"dpm++, {name}", INTERVAL_STEPS, INTERVAL_STEPS + guided, latents)
    if arguments.out:
        samplers = {
            "model": arguments.model,
            "prompts": prompts,
            "guidance": GUIDANCE,
            "reference": REFERENCE,
            "rows": rows,
        }
        keep(arguments.out, {"samplers": samplers})


if __name__ == "__main__":
    main()
