"""What more music is worth: `mini`'s diffusion model, trained from scratch on 1 %, 10 % and all of a collection.

    python -m recipes.mini.scaling --data data/train --held data/held --runs RUNS --out scaling.json

VAE, CLAP and vocoder are those of the bundled model; steps, batches and seeds are the same for every share, and smaller
shares are parts of larger ones. Reported: the loss on the collection's own held-out clips as training goes on, beside
that of always predicting 0 (both depend on the scale of the latents, which a run takes from its first batch), and of
what the result plays for the captions of ``held``, of pieces that are in no share: CLAP's similarity of prompt and
music, kernel and Frechet distances to the recordings, beside those of recordings among themselves. Runs that were
interrupted continue.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import keep
from musicldm import MusicLDMPipeline
from musicldm.analysis.embedders import LogMelEmbedder
from musicldm.data.clips import Clip, read_clip
from musicldm.data.collection import load_clips, split_clips
from musicldm.evaluate import frechet_distance, kernel_distance
from musicldm.models.clap import embed_text
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.models.loading import bundled_models
from musicldm.sampling.schedulers import GUIDANCE, SAMPLER, STEPS, make_scheduler
from musicldm.train import run
from musicldm.train.log import METRICS_FILE
from musicldm.train.run_folder import CONFIG_FILE
from recipes.mini.playing import play
from vocoder import MelConfig, mel_config

BATCH = 16


def spread(clips: list[Clip], n: int) -> list[Clip]:
    """At most ``n`` clips, evenly spread."""
    return [clips[i * len(clips) // n] for i in range(n)] if len(clips) > n else clips


def recordings(clips: list[Clip], mel: MelConfig) -> torch.Tensor:
    """Waveforms (N, L)."""
    return torch.from_numpy(np.stack([read_clip(clip, mel.sample_rate, mel.clip_samples) for clip in clips]))


def embedded(waveforms: torch.Tensor, embedder, sample_rate: int) -> np.ndarray:
    """Embeddings (N, D), some waveforms at a time."""
    return np.concatenate([embedder(some, sample_rate) for some in waveforms.split(BATCH)])


def distances(ours: np.ndarray, real: np.ndarray) -> dict[str, float]:
    return {"kernel": kernel_distance(ours, real), "frechet": frechet_distance(ours, real)}


def train_share(share: float, options: argparse.Namespace) -> Path:
    """The finished run on ``share`` of the collection."""
    out, mini = options.runs / f"share-{share:g}", bundled_models()["mini"]
    if (out / "final").is_dir():
        return out
    parts = [f"vae={mini / 'vae'}", f"vocoder={mini / 'vocoder'}", f"clap={mini}"]
    length = [f"steps={options.steps}", f"batch_size={options.batch}", f"cooldown_steps={options.steps // 4}"]
    length += [f"validate_every={max(1, options.steps // 8)}", f"save_every={max(1, options.steps // 8)}"]
    others = ["trackers=[]", f"share={share}", *options.settings]
    run("diffusion", "mini", options.data, out, resume=(out / CONFIG_FILE).exists(), overrides=parts + length + others)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the collection to train on")
    parser.add_argument("--held", type=Path, required=True, help="renderings of other pieces, with captions")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--clips", type=int, default=200, help="of HELD that are played")
    parser.add_argument("--sampler-steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the diffusion trainer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    bundled = MusicLDMPipeline.from_pretrained("mini")
    mel = mel_config(bundled.vocoder)
    held = [clip for clip in load_clips(options.held, mel.clip_s) if clip.texts]
    asked, others = spread(held[::2], options.clips), spread(held[1::2], options.clips)
    prompts = [clip.texts[0] for clip in asked]
    with torch.no_grad():
        texts = torch.cat([embed_text(bundled.text_encoder, bundled.tokenizer, [prompt]) for prompt in prompts]).numpy()
    embedders = {"clap": ClapEmbedder(bundled.text_encoder, bundled.feature_extractor), "log_mel": LogMelEmbedder(mel)}

    def embed(waveforms: torch.Tensor) -> dict[str, np.ndarray]:
        return {name: embedded(waveforms, embedder, mel.sample_rate) for name, embedder in embedders.items()}

    def figures(ours: dict[str, np.ndarray], as_asked: dict[str, np.ndarray]) -> dict:
        """Distances of music embedded in ``ours``, and how like the prompts what was made for them is."""
        return {
            "distances": {name: distances(ours[name], reference[name]) for name in embedders},
            "clap_similarity": float((as_asked["clap"] * texts).sum(axis=1).mean()),
        }

    reference = embed(recordings(asked, mel))
    result = {
        "settings": {name: str(value) for name, value in vars(options).items() if name not in ("data", "held", "runs")},
        "played_clips": len(prompts),
        "recordings": figures(embed(recordings(others, mel)), reference),
        "shares": {},
    }
    clips = load_clips(options.data, mel.clip_s)
    for share in options.shares:
        out = train_share(share, options)
        pipeline = MusicLDMPipeline.from_pretrained(out / "final")
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = make_scheduler(SAMPLER, pipeline.scheduler)
        played = embed(play(pipeline, prompts, mel.clip_s, options.sampler_steps, GUIDANCE))
        rows = [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]
        curve = [[row["step"], row["loss"], row["constant_loss"]] for row in rows if row["group"] == "validation"]
        of_share = {"training_clips": len(split_clips(clips, share)[0]), "validation_loss_and_constant": curve}
        of_share |= figures(played, played)
        result["shares"][f"{share:g}"] = of_share
        print(json.dumps({f"{share:g}": of_share}, indent=1), flush=True)
        if options.out:
            keep(options.out, {"scaling": result})


if __name__ == "__main__":
    main()
