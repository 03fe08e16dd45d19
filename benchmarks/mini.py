"""How good the bundled model is: distances of its music from held-out renderings, beside a yardstick.

    python -m benchmarks.mini --data FOLDER --train TRAIN --recordings RECORDINGS --out benchmarks/results/mini.json

FOLDER is a collection (``musicldm render``) of pieces that no training clip comes from. Its captions are the prompts.
Kernel and Frechet distances to its recordings are given for what the model plays, and for two yardsticks: the same
recordings sent through VAE and vocoder, which have the very notes; and as many clips of the training set, which are
music of the same kind but other pieces, so that nothing that composes by itself can be expected to come nearer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.machine import describe_machine
from benchmarks.retrieval import recall
from musicldm import MusicLDMPipeline
from musicldm.cli.generate import DEFAULTS
from musicldm.data.clips import Clip, read_clip
from musicldm.data.collection import load_clips
from musicldm.evaluate import frechet_distance, kernel_distance, log_mel_statistics, nearest_similarity
from musicldm.generate.reconstruct import reconstruct
from musicldm.models.clap import embed_audio, embed_text
from musicldm.sampling.schedulers import make_scheduler
from vocoder import mel_config


def play(
    pipeline: MusicLDMPipeline,
    prompts: list[str],
    seconds: float,
    steps: int,
    guidance: float,
    interval: Sequence[float] = DEFAULTS["guidance_interval"],
) -> torch.Tensor:
    """Waveforms (N, L), one for each prompt, in batches of eight."""
    waveforms = []
    for first in tqdm(range(0, len(prompts), 8), desc="generate"):
        some = prompts[first : first + 8]
        options = {"audio_length_in_s": seconds, "num_inference_steps": steps, "guidance_scale": guidance}
        options["guidance_interval"] = tuple(interval)
        waveforms.append(pipeline(some, seed=first, output_type="pt", **options).audios)
    return torch.cat(waveforms)


def add_sampler_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it samples; the defaults are those of ``musicldm generate``."""
    parser.add_argument("--model", default=DEFAULTS["model"])
    parser.add_argument("--steps", type=int, default=DEFAULTS["steps"])
    parser.add_argument("--guidance", type=float, default=DEFAULTS["guidance"])
    parser.add_argument("--interval", type=float, nargs=2, default=DEFAULTS["guidance_interval"])
    parser.add_argument("--scheduler", default=DEFAULTS["scheduler"])


def load_pipeline(arguments: argparse.Namespace) -> MusicLDMPipeline:
    """The model that `add_sampler_arguments` asked for, with its sampler, as ``musicldm generate`` runs it."""
    pipeline = MusicLDMPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler(arguments.scheduler, pipeline.scheduler)
    return pipeline.optimize()


def distances(some: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
    """Kernel and Frechet distance of ``some`` from ``reference``, both (N, D) by the name of their space."""
    return {
        f"{measure}_{space}": function(some[space], reference[space])
        for space in reference
        for measure, function in (("kernel", kernel_distance), ("frechet", frechet_distance))
    }


def full_scale(waveforms: torch.Tensor) -> float:
    """Share of ``waveforms (N, L)`` that come within 5 % of full scale: so loud that they are cut off, or limited."""
    return float((waveforms.abs().amax(dim=1) >= 0.95).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_sampler_arguments(parser)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", type=Path, help="what the model was trained on, to look for copies")
    parser.add_argument("--recordings", type=Path, help="real recordings, for the error of the round trip")
    parser.add_argument("--clips", type=int, default=1000, help="spread evenly over the collection")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    pipeline = load_pipeline(arguments)
    mel = mel_config(pipeline.vocoder)

    def read(clip: Clip) -> np.ndarray:
        return read_clip(clip, mel.sample_rate, mel.clip_samples)

    clips = [clip for clip in load_clips(arguments.data, mel.clip_s) if clip.texts]
    if len(clips) > arguments.clips:
        clips = [clips[i * len(clips) // arguments.clips] for i in range(arguments.clips)]
    prompts = [clip.texts[0] for clip in clips]
    real = torch.from_numpy(np.stack([read(clip) for clip in clips]))

    @torch.no_grad()
    def embeddings(waveforms: torch.Tensor) -> dict[str, np.ndarray]:
        heard = [
            embed_audio(pipeline.text_encoder, pipeline.feature_extractor, some, mel.sample_rate)
            for some in waveforms.split(16)
        ]
        return {"clap": torch.cat(heard).numpy(), "log_mel_statistics": log_mel_statistics(waveforms, mel).numpy()}

    with torch.no_grad():
        trips = [reconstruct(some.numpy(), pipeline.vae, pipeline.vocoder) for some in tqdm(real, desc="round trip")]
        round_trip = torch.from_numpy(np.stack([trip.waveform for trip in trips]))
        text = torch.cat([embed_text(pipeline.text_encoder, pipeline.tokenizer, [prompt]) for prompt in prompts])
    played = play(pipeline, prompts, mel.clip_s, arguments.steps, arguments.guidance, arguments.interval)

    reference = embeddings(real)
    embedded = {"round_trip": embeddings(round_trip), "model": embeddings(played)}
    results = {name: distances(some, reference) for name, some in embedded.items()}
    for name, some in embedded.items():
        results[name]["clap_text_similarity"] = float((torch.from_numpy(some["clap"]) * text).sum(1).mean())
    report = {
        "machine": describe_machine(),
        "settings": {key: str(value) for key, value in vars(arguments).items()},
        "clips": len(clips),
        "distances": results,
        "round_trip_log_mel_error": float(np.mean([trip.log_mel_error for trip in trips])),
        "full_scale": {name: full_scale(some) for name, some in (("model", played), ("held_out", real))},
        "text_to_audio_recall": recall(text.numpy(), reference["clap"], np.arange(len(text))),
    }
    if arguments.recordings:
        others = load_clips(arguments.recordings, mel.clip_s)
        errors = [reconstruct(read(clip), pipeline.vae, pipeline.vocoder).log_mel_error for clip in tqdm(others)]
        report["recordings"] = {"clips": len(errors), "round_trip_log_mel_error": float(np.mean(errors))}
    if arguments.train:
        train = load_clips(arguments.train, mel.clip_s)
        heard = [
            embeddings(torch.from_numpy(np.stack([read(clip) for clip in some])))
            for some in tqdm([train[i : i + 16] for i in range(0, len(train), 16)], desc="training clips")
        ]
        learned = {space: np.concatenate([some[space] for some in heard]) for space in reference}
        spread = [i * len(train) // len(clips) for i in range(len(clips))]
        results["training_clips"] = distances({space: rows[spread] for space, rows in learned.items()}, reference)
        nearest = {
            name: nearest_similarity(some, learned["clap"])
            for name, some in (("model", embedded["model"]["clap"]), ("held_out", reference["clap"]))
        }
        report["nearest_training_clip"] = {
            name: {
                "median_similarity": float(np.median(some)),
                "share_above": {str(limit): float((some > limit).mean()) for limit in (0.90, 0.95)},
            }
            for name, some in nearest.items()
        }
    print(json.dumps(report, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
