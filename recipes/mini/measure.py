"""How good the bundled model is: the measures of its card, each from a report of ``musicldm evaluate``.

    python -m recipes.mini.measure --data data/held --train data/train --work DIR --out mini.json

``data/held`` is a collection (``musicldm render``) of pieces that no training clip comes from. Its captions are the
prompts, its recordings the reference. Three kinds of music are compared with it: what the model plays, and as
yardsticks the same recordings sent through VAE and vocoder, which have the very notes, and as many clips of the
training set, which are music of the same kind but other pieces, so that nothing that composes by itself can be
expected to come nearer. INDEX (``musicldm novelty index``) adds how near music lies to single training clips. DIR keeps
the reports and the music; a command that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from benchmarks.results import keep
from musicldm import MusicLDMPipeline
from musicldm.audio import read_audio, write_audio
from musicldm.data.metadata import metadata_rows, row_texts
from musicldm.generate.reconstruct import reconstruct
from musicldm.sampling.schedulers import GUIDANCE, GUIDANCE_INTERVAL, STEPS
from vocoder import mel_config

MEASURES = {
    "kernel_clap": "kernel_distance_clap",
    "frechet_clap": "frechet_distance_clap",
    "kernel_log_mel_statistics": "kernel_distance_log_mel",
    "frechet_log_mel_statistics": "frechet_distance_log_mel",
    "clap_text_similarity": "text_audio_similarity",
}
LOUD = 0.95  # of full scale
LIMITS = (0.90, 0.95)


def chosen_rows(folder: Path, most: int) -> list[dict]:
    """At most ``most`` captioned recordings, spread evenly over ``folder``, with absolute paths."""
    rows = [row for row in metadata_rows(folder) if row_texts(row)]
    rows = [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else rows
    return [row | {"file_name": str((folder / row["file_name"]).resolve())} for row in rows]


def write_rows(rows: list[dict], folder: Path) -> Path:
    """An audio folder of the recordings of ``rows``, wherever they lie."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def round_trip(rows: list[dict], pipeline: MusicLDMPipeline, folder: Path) -> tuple[Path, list[float]]:
    """An audio folder of the recordings as they come back from VAE and vocoder, and their log-mel errors."""
    folder.mkdir(parents=True, exist_ok=True)
    rate, back, errors = pipeline.sampling_rate, [], []
    for i, row in enumerate(tqdm(rows, desc="round trip")):
        trip = reconstruct(read_audio(row["file_name"], rate)[0], pipeline.vae, pipeline.vocoder)
        path = folder.resolve() / f"{i:05d}.wav"
        write_audio(path, trip.waveform, rate)
        back.append(row | {"file_name": str(path)})
        errors.append(trip.log_mel_error)
    return write_rows(back, folder), errors


def evaluate(out: Path, *arguments: object) -> dict:
    """What `musicldm evaluate` writes into metrics.json."""
    command = [sys.executable, "-m", "musicldm", "evaluate", "--no-tempo", "--out", out, *arguments]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "metrics.json").read_text())


def measures(made: dict) -> dict[str, float]:
    return {name: made["metrics"][key]["value"] for name, key in MEASURES.items() if key in made["metrics"]}


def nearness(made: dict) -> dict:
    """How near single clips lie to the training set."""
    near = np.array(made["single"]["nearest_training_similarity"])
    shares = {str(limit): float((near > limit).mean()) for limit in LIMITS}
    return {"median_similarity": float(np.median(near)), "share_above": shares}


def loud_share(files: list[Path]) -> float:
    return float(np.mean([np.abs(soundfile.read(file)[0]).max() >= LOUD for file in files]))


def table(distances: dict[str, dict[str, float]]) -> str:
    """The card's table, in Markdown."""
    lines = ["| | " + " | ".join(MEASURES) + " |", "| --- |" + " ---: |" * len(MEASURES)]
    for name, row in distances.items():
        cells = [f"{row[measure]:.5f}" if measure in row else "" for measure in MEASURES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", type=Path, help="what the model was trained on, as other music of the same kind")
    parser.add_argument("--index", type=Path, help="novelty index of the training set, to look for copies")
    parser.add_argument("--recordings", type=Path, help="real recordings, for the error of the round trip")
    parser.add_argument("--clips", type=int, default=1000, help="spread evenly over the collection")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--guidance-interval", type=float, nargs=2, default=GUIDANCE_INTERVAL)
    parser.add_argument("--work", type=Path, default=Path("runs/measure"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    work = arguments.work

    pipeline = MusicLDMPipeline.from_pretrained(arguments.model)
    rows = chosen_rows(arguments.data, arguments.clips)
    held = write_rows(rows, work / "held")
    back, errors = round_trip(rows, pipeline, work / "round_trip")
    shared = ["--model", arguments.model, "--reference", held, "--cache", work / "cache"]
    near = [] if arguments.index is None else ["--index", arguments.index]
    sampler = ["--steps", arguments.steps, "--guidance", arguments.guidance]
    sampler += ["--guidance-interval", *arguments.guidance_interval]
    made = {"round_trip": evaluate(work / "of_round_trip", "--audio", back, *shared)}
    made["model"] = evaluate(work / "of_model", "--prompts", held, *sampler, *shared, *near)
    if arguments.train:
        other = write_rows(chosen_rows(arguments.train, len(rows)), work / "training_clips")
        made["training_clips"] = evaluate(work / "of_training_clips", "--audio", other, *shared)
    distances = {name: measures(one) for name, one in made.items()}

    played = [work / "of_model" / clip["file"] for clip in made["model"]["clips"]]
    report = {
        "settings": {key: str(value) for key, value in vars(arguments).items()},
        "clips": len(rows),
        "distances": distances,
        "round_trip_log_mel_error": float(np.mean(errors)),
        "full_scale": {"model": loud_share(played), "held_out": loud_share([Path(row["file_name"]) for row in rows])},
    }
    if arguments.recordings:
        length = mel_config(pipeline.vocoder).clip_samples
        files = sorted(path for path in arguments.recordings.rglob("*") if path.suffix in (".wav", ".flac", ".mp3"))
        others = [read_audio(path, pipeline.sampling_rate)[0] for path in files]
        clips = [x[i : i + length] for x in others for i in range(0, len(x) - length // 2, length)]
        errors = [reconstruct(clip, pipeline.vae, pipeline.vocoder).log_mel_error for clip in tqdm(clips)]
        report["recordings"] = {"clips": len(errors), "round_trip_log_mel_error": float(np.mean(errors))}
    if near:
        other = evaluate(work / "of_held", "--model", arguments.model, "--audio", held, *near)
        report["nearest_training_clip"] = {"model": nearness(made["model"]), "held_out": nearness(other)}
    print(json.dumps(report, indent=1))
    print(table(distances))
    if arguments.out:
        keep(arguments.out, report)


if __name__ == "__main__":
    main()
