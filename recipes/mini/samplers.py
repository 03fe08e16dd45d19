"""How many steps does it take? Error against a 1000-step reference for several samplers, and what the music is like.

    python -m recipes.mini.samplers --prompts 1 --out recipes/mini/results/samplers.json
    python -m recipes.mini.samplers --held FOLDER --probe FOLDER --prompts 1 --out recipes/mini/results/samplers.json

All runs start from the same noise. The error is relative, of the latents; the reference is Euler's method, which is
DDIM's, with 1000 steps: the same ordinary differential equation in the smallest steps that the model knows. Two more
rows leave guidance out of a part of the steps, which halves the work there.

The second command also plays phrases that name one family of instruments each, and gives CLAP's score of the phrases,
kernel distances to held-out recordings (FOLDER as for ``recipes.mini.measure``), and how often a probe that is no part
of the model hears the family that was named (FOLDER as for ``recipes.mini.following``).

Kynkäänniemi et al. (2024), Applying Guidance in a Limited Interval. https://arxiv.org/abs/2404.07724
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.results import keep
from musicldm.analysis.embedders import LogMelEmbedder
from musicldm.data.clips import read_clip
from musicldm.data.collection import load_clips
from musicldm.evaluate import kernel_distance
from musicldm.evaluate.probe import FamilyProbe, folder_features
from musicldm.models.clap import embed_audio
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling.schedulers import GUIDANCE as COMMAND_GUIDANCE
from musicldm.sampling.schedulers import GUIDANCE_INTERVAL, make_scheduler
from recipes.mini.phrases import FAMILIES
from vocoder import mel_config

PROMPTS = [
    "a calm piece for solo piano",
    "a fast rock band with drums and electric guitar",
    "a string quartet plays a calm waltz",
    "drums, funk, 100 BPM",
]
SAMPLERS = ("ddim", "dpm++", "unipc")
STEPS = (4, 8, 16, 25, 50, 200)
FIGURES_OF = [("dpm++", 4), ("dpm++", 8), ("dpm++", 16), ("dpm++", 25), ("dpm++", 50), ("ddim", 25), ("ddim", 200)]
RECORDINGS = 64
INTERVALS = {"guided in the first half": (0.5, 1.0), "guided in the middle": (0.2, 0.8)}  # of the noise
REFERENCE, REFERENCE_STEPS = "euler", 1000
GUIDANCE, INTERVAL_STEPS = 2.0, 25


def run(
    pipeline: MusicLDMPipeline,
    prompts: list[str],
    sampler: str,
    steps: int,
    interval: tuple[float, float] = (0.0, 1.0),
    guidance: float = GUIDANCE,
) -> Tensor:
    """Latents for all prompts, guided where the noise is in ``interval``."""
    trained_with = pipeline.scheduler
    pipeline.scheduler = make_scheduler(sampler, trained_with)
    try:
        return pipeline(
            prompts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            guidance_interval=interval,
            seed=1,
            output_type="latent",
        ).audios
    finally:
        pipeline.scheduler = trained_with


@torch.no_grad()
def clap_score(pipeline: MusicLDMPipeline, prompts: list[str], latents: Tensor) -> float:
    """Mean cosine similarity of waveforms and their prompts."""
    waveforms = pipeline.vocode(pipeline.decode_latents(latents))
    heard = embed_audio(pipeline.text_encoder, pipeline.feature_extractor, waveforms, pipeline.sampling_rate)
    wanted = functional.normalize(pipeline.embed_texts(prompts), dim=-1)
    return (heard * wanted).sum(dim=1).mean().item()


def figures(pipeline: MusicLDMPipeline, held: Path, probe_folder: Path, each: int) -> list[dict]:
    """CLAP's score, kernel distances and the probe's verdict on ``each`` phrases of every family.

    Guided as ``musicldm generate`` does.
    """
    mel = mel_config(pipeline.vocoder)
    asked = [family for family in FAMILIES for _ in FAMILIES[family][:each]]
    phrases = [phrase for family in FAMILIES for phrase in FAMILIES[family][:each]]
    probe = FamilyProbe(*folder_features(probe_folder, mel))
    clips = load_clips(held, mel.clip_s)
    clips = [clips[i * len(clips) // RECORDINGS] for i in range(min(RECORDINGS, len(clips)))]
    recordings = torch.from_numpy(np.stack([read_clip(clip, mel.sample_rate, mel.clip_samples) for clip in clips]))
    embedders = {
        "clap": ClapEmbedder(pipeline.text_encoder, pipeline.feature_extractor),
        "log_mel": LogMelEmbedder(mel),
    }
    real = {name: embedder(recordings, mel.sample_rate) for name, embedder in embedders.items()}
    rows = []
    for sampler, steps in FIGURES_OF:
        parts = [phrases[i : i + 8] for i in range(0, len(phrases), 8)]
        latents = torch.cat(
            [run(pipeline, part, sampler, steps, GUIDANCE_INTERVAL, COMMAND_GUIDANCE) for part in parts]
        )
        waveforms = pipeline.vocode(pipeline.decode_latents(latents))
        played = {name: embedder(waveforms, mel.sample_rate) for name, embedder in embedders.items()}
        row = {"sampler": sampler, "steps": steps, "clap_score": clap_score(pipeline, phrases, latents)}
        row |= {f"kernel_distance_{name}": kernel_distance(played[name], real[name]) for name in embedders}
        row["family_as_named"] = float((probe.families(waveforms, mel) == np.array(asked)).mean())
        rows.append(row)
        numbers = (f"{key} {value:.4f}" for key, value in row.items() if isinstance(value, float))
        print(f"{sampler:32} {steps:4} steps  {', '.join(numbers)}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts, for the error")
    parser.add_argument("--held", type=Path, help="recordings of pieces that were not trained on")
    parser.add_argument("--probe", type=Path, help="solo renderings of such pieces")
    parser.add_argument("--phrases", type=int, default=1, help="of each family")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if (arguments.held is None) != (arguments.probe is None):
        parser.error("--held and --probe go together")
    prompts = PROMPTS[: arguments.prompts]
    pipeline = MusicLDMPipeline.from_pretrained(arguments.model).optimize(bfloat16=False)
    pipeline.set_progress_bar_config(disable=True)
    exact = run(pipeline, prompts, REFERENCE, REFERENCE_STEPS)
    rows = []

    def add(name: str, steps: int, evaluations: int, latents: Tensor) -> None:
        error = ((latents - exact).norm() / exact.norm()).item()
        rows.append({"sampler": name, "steps": steps, "evaluations": evaluations, "error": error})
        print(f"{name:32} {steps:4} steps  error {error:.4f}", flush=True)

    for sampler in SAMPLERS:
        for steps in STEPS:
            add(sampler, steps, 2 * steps, run(pipeline, prompts, sampler, steps))
    for name, (first, end) in INTERVALS.items():
        guided = round(end * INTERVAL_STEPS) - round(first * INTERVAL_STEPS)
        latents = run(pipeline, prompts, "dpm++", INTERVAL_STEPS, (first, end))
        add(f"dpm++, {name}", INTERVAL_STEPS, INTERVAL_STEPS + guided, latents)
    samplers = {
        "model": arguments.model,
        "prompts": prompts,
        "guidance": GUIDANCE,
        "guidance_of_figures": [COMMAND_GUIDANCE, *GUIDANCE_INTERVAL],
        "reference": {"sampler": REFERENCE, "steps": REFERENCE_STEPS},
        "rows": rows,
    }
    if arguments.held:
        with torch.no_grad():
            samplers["figures"] = figures(pipeline, arguments.held, arguments.probe, arguments.phrases)
    if arguments.out:
        keep(arguments.out, {"samplers": samplers})


if __name__ == "__main__":
    main()
