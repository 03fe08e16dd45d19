"""The paper's question: does a model that trains on mixtures copy less of its training set, and at what price?

    python -m recipes.mixup_experiment.run DATA HELD --scores FOLDER --probe FOLDER --clips 300 --work DIR

DATA, HELD and the probe's FOLDER are renderings (``recipes.mini.data``), ``--scores`` the MIDI files they came from.
Of DATA, ``--clips`` clips of as many pieces as possible are drawn; for each ``--modes`` (mixup none, plain, audio,
latent) and ``--seeds`` the diffusion model is trained on them with otherwise equal settings, and evaluated: captions of
held-out clips are prompts, those clips the reference, the training clips the index. What is computed once (latents,
embeddings, beats, mixtures of each mode) is shared by all runs. A stopped command goes on where it was; results are
kept after each run. ``--minutes`` ends it before a run that would begin later than that.

The published size: ``--config original --model FOLDER --clips N steps=... mixed_precision=bf16`` on a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.results import keep
from musicldm import MusicLDMPipeline
from musicldm.cli.common import load_quietly
from musicldm.config import DiffusionConfig, find_config, load_config
from musicldm.evaluate.collect import Clip, folder_clips
from musicldm.evaluate.compare import compare
from musicldm.evaluate.intervals import Estimate
from musicldm.evaluate.run import EvaluationConfig, Judges, run_evaluation
from musicldm.evaluate.summary import SHARES
from musicldm.generate import Session, Settings
from musicldm.generate.environment import model_revision
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.models.loading import find_folder
from musicldm.novelty.build import build_index
from musicldm.train import run_stage
from recipes.mixup_experiment.data import draw_rows, write_analysis, write_set

MODES = ("none", "plain", "audio", "latent")
SMALL = ["channels=[32,64,128]", "attention_from_level=2", "layers_per_level=1", "norm_groups=8"]  # 4.1 M parameters
SMALL += ["mixed_precision=bf16"]
RUN = ["trackers=[]", "mixup_seed=0", "keep_checkpoints=1"]
TABLE = (
    "frechet_distance_clap",
    "frechet_distance_log_mel",
    "inception_score",
    "paired_kl_divergence",
    "text_audio_similarity",
    "nearest_training_similarity",
    "sim_aa_90",
    "sim_aa_95",
    "above_base_rate",
    "copies",
)


def prepare_training(options: argparse.Namespace, folder: Path) -> dict:
    """The training set, with a few clips for the validation loss; returns how large it is."""
    made = folder / "size.json"
    if not made.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metadata.jsonl").unlink(missing_ok=True)
        rows = draw_rows(options.data, options.clips, "train")
        write_set(rows, options.data, folder)
        write_set(draw_rows(options.data, options.validation, "validation"), options.data, folder)
        size = write_analysis(folder, options.scores)
        made.write_text(json.dumps({"clips": len(rows), "pieces": len({row["piece_id"] for row in rows})} | size))
    return json.loads(made.read_text())


def prepare_reference(options: argparse.Namespace, folder: Path) -> list[Clip]:
    """The held-out clips."""
    if not (folder / "metadata.jsonl").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_set(draw_rows(options.held, options.held_clips), options.held, folder)
    return folder_clips(folder)


def training_config(options: argparse.Namespace, model: Path, work: Path, mode: str, seed: int) -> DiffusionConfig:
    """All that runs have in common, and what tells one from the others."""
    parts = [f"vae={model / 'vae'}", f"vocoder={model / 'vocoder'}", f"clap={model}", f"cache={work / 'cache'}"]
    small = SMALL if options.config == "mini" else []
    own = [f"mixup={mode}", f"seed={seed}"]
    path = find_config(options.config, "diffusion")
    return load_config(DiffusionConfig, path, [*parts, *small, *RUN, *options.set, *own])


def evaluate(options: argparse.Namespace, run: Path, work: Path, reference: list[Clip], seed: int) -> None:
    """What `musicldm evaluate` measures of the model in ``run``."""
    asked = reference[: options.prompts]
    session = Session(run / "final", "cpu", fast=False)
    session.model = run.name
    settings = Settings(steps=options.sampler_steps, guidance=options.guidance, guidance_interval=(0.0, 1.0))
    config = EvaluationConfig(
        prompts=[clip.prompt for clip in asked],
        pairs=asked,
        seed=1000 * seed,
        settings=settings,
        batch_size=options.batch,
        judges=Judges(work / "held", work / "index", options.probe, work / "cache" / "evaluation", tempo=False),
    )
    run_evaluation(session, run / "evaluation", config)


def losses(run: Path) -> dict:
    """The last losses on training items and on clips of other pieces."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {group: [line["loss"] for line in lines if line["group"] == group] for group in ("train", "validation")}
    return {"train": round(float(np.mean(found["train"][-4:])), 4), "validation": round(found["validation"][-1], 4)}


def together(runs: list[dict]) -> dict:
    """The evaluations of several seeds as one: mean measures, for `compare` as independent estimates.

    The error of a mean is that of the runs over the root of their number, of which the larger counts: what each run
    says of itself, or how much they differ. Values of single clips are left out: those of two runs are not twice as
    many prompts, and to pair them would leave out how much runs differ.
    """
    metrics = {}
    for name in TABLE:
        if found := [run["metrics"][name] for run in runs if name in run["metrics"]]:
            values, errors = (np.array([one[key] for one in found]) for key in ("value", "error"))
            spread = float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
            value, error = float(values.mean()), float(np.sqrt(max(np.mean(errors**2), spread) / len(values)))
            low, high = value - 1.96 * error, value + 1.96 * error
            if name in SHARES:
                low, high = max(0.0, low), min(1.0, high)
            metrics[name] = Estimate(value, low, high, error)._asdict()
    return {"metrics": metrics, "single": {}, "prompts": runs[0]["prompts"]}


def rounded(rows: dict[str, dict]) -> dict[str, dict]:
    """Numbers with five decimals."""
    return {
        name: {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        for name, row in rows.items()
    }


def collect(options: argparse.Namespace, model: Path, work: Path, size: dict, runs: list[tuple[str, int]]) -> dict:
    """The table: every measure of each run, of the seeds of a mode together, and less that of training without."""
    found: dict[str, dict[int, dict]] = {}
    for mode, seed in runs:
        path = work / "runs" / f"{mode}-{seed}" / "evaluation" / "metrics.json"
        if path.is_file():
            found.setdefault(mode, {})[seed] = json.loads(path.read_text())
    pooled = {mode: together(list(seeds.values())) for mode, seeds in found.items()}
    modes = {}
    for mode, seeds in found.items():
        each = {}
        for seed, made in seeds.items():
            values = {name: round(made["metrics"][name]["value"], 5) for name in pooled[mode]["metrics"]}
            each[str(seed)] = {"loss": losses(work / "runs" / f"{mode}-{seed}"), "measures": values}
        modes[mode] = {"seeds": each, "together": rounded(pooled[mode]["metrics"])}
        if mode != "none" and "none" in found and seeds.keys() == found["none"].keys():
            modes[mode]["against_none"] = rounded(compare(pooled["none"], pooled[mode]))
    config = training_config(options, model, work, "none", 0)
    settings = {name: getattr(config, name) for name in ("steps", "batch_size", "learning_rate", "mixup_probability")}
    settings |= {"channels": list(config.channels), "config": options.config, "overrides": options.set}
    settings |= {"model": options.model, "revision": model_revision(model), "prompts": options.prompts}
    settings |= {"sampler_steps": options.sampler_steps, "guidance": options.guidance}
    base_rate = json.loads((work / "index" / "index.json").read_text())["base_rate"]
    base_rate = {key: value for key, value in base_rate.items() if key != "similarities"}
    about = {"settings": settings, "training_set": size, "reference_clips": options.held_clips}
    return about | {"base_rate": base_rate, "modes": modes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="renderings to train on")
    parser.add_argument("held", type=Path, help="renderings of other pieces")
    parser.add_argument("set", nargs="*", metavar="key=value", help="settings of training, the same for all runs")
    parser.add_argument("--scores", type=Path, required=True, help="MIDI files that DATA was rendered from")
    parser.add_argument("--probe", type=Path, help="renderings that teach the instrument probe")
    parser.add_argument("--clips", type=int, default=300, help="to train on")
    parser.add_argument("--validation", type=int, default=32, help="clips of DATA that its renderings hold out")
    parser.add_argument("--held-clips", type=int, default=500, help="the reference, whose first give the prompts")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--config", default="mini", help="mini with a small UNet, or another configuration as it is")
    parser.add_argument("--model", default="mini", help="whose VAE, vocoder and CLAP")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--sampler-steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=8, help="clips generated at a time")
    parser.add_argument("--work", type=Path, required=True, help="for all that is made on the way")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--only", choices=("train", "evaluate"))
    parser.add_argument("--out", type=Path, default=Path("recipes/mixup_experiment/results/experiment.json"))
    options = parser.parse_intermixed_args()
    began = time.monotonic()
    load_quietly()
    model, work = find_folder(options.model, MusicLDMPipeline.download), options.work / str(options.clips)
    runs = [(mode, int(seed)) for seed in options.seeds.split(",") for mode in options.modes.split(",")]
    size = prepare_training(options, work / "train")

    def left(mode: str, seed: int, done: str) -> Path | None:
        """The folder of a run of which ``done`` is not there; None if it is, or if time is up."""
        run = work / "runs" / f"{mode}-{seed}"
        return None if (run / done).is_file() or time.monotonic() - began > 60 * options.minutes else run

    for mode, seed in runs if options.only != "evaluate" else ():
        if run := left(mode, seed, "final/model_index.json"):
            run_stage(training_config(options, model, work, mode, seed), work / "train", run, resume=True)
    if options.only == "train":
        return
    reference = prepare_reference(options, work / "held")
    if not (work / "index").is_dir():
        build_index(work / "train", work / "index", ClapEmbedder.from_model(model), split="train")
    for mode, seed in runs:
        if (run := left(mode, seed, "evaluation/metrics.json")) and (run / "final" / "model_index.json").is_file():
            evaluate(options, run, work, reference, seed)
        if (work / "runs" / f"{mode}-{seed}" / "evaluation" / "metrics.json").is_file():
            keep(options.out, {f"{options.clips}_clips": collect(options, model, work, size, runs)})


if __name__ == "__main__":
    main()
