"""What a mixture is and what it costs.

    python -m recipes.mixup_experiment.items [--recordings FOLDER] [--only mixtures,items,conditions,steps]

`mixtures` draws from recordings and rendered scores, finds lambda again by regression on both parts and measures how
much louder one is heard than the other; `items` counts mixtures per second of one core; `conditions` says what making
them ready for training takes, beside the networks alone; `steps` what a training step on them takes, beside one
without. Processor time, so that other programs do not count. Results: recipes/mixup_experiment/results/items.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from pyloudnorm import Meter
from tqdm import tqdm

from augment.mixup import block_loudness
from benchmarks.results import keep
from musicldm.config import DiffusionConfig, find_config, load_config
from musicldm.data.analysis import Analysed, analyse_collection
from musicldm.data.clips import Clip
from musicldm.data.collection import Collection, load_clips
from musicldm.data.items import Item, batch_items
from musicldm.data.mixup import BeatSynchronousMixup, Mixture, MixupSettings
from musicldm.scores.synthesis import find_soundfont
from recipes.mixup_experiment.scores import Piece, render_piece

RATE, CLIP_S = 16_000, 10.24
N_SAMPLES = round(RATE * CLIP_S)
SETTINGS = (("plain", "synchronous"), ("audio", "paper"), ("audio", "synchronous"), ("latent", "synchronous"))


def make_collection(folder: Path, recordings: Path | None, soundfont: Path) -> None:
    """Copy ``recordings`` and render 16 scores of 24 s, two near each of eight tempos, with captions."""
    rows = []
    for path in sorted(recordings.iterdir()) if recordings else []:
        if path.suffix in (".ogg", ".flac", ".wav", ".mp3"):
            shutil.copy(path, folder)
            rows.append({"file_name": path.name, "text": path.stem.replace("_", " ")})
    rng = np.random.default_rng(2)
    for i in tqdm(range(16), desc="render"):
        bpm = (76, 92, 95, 104, 110, 120, 130, 140)[i // 2] * rng.uniform(0.985, 1.015)
        rendered = render_piece(Piece(round(float(bpm), 2), seed=200 + i), 24.0, soundfont, folder, RATE)
        level = 10 ** (rng.uniform(-15, 0) / 20)
        soundfile.write(folder / f"score_{i:02d}.flac", level * rendered.waveform, RATE)
        rows.append({"file_name": f"score_{i:02d}.flac", "text": f"a band, {bpm:.0f} BPM"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def dataset_of(clips: list[Clip], analysis: list[Analysed], kind: str, mode: str) -> BeatSynchronousMixup:
    """Mixtures of 10.24 s at 16 kHz."""
    return BeatSynchronousMixup(clips, analysis, RATE, N_SAMPLES, MixupSettings(kind, mode))


def examine(mixture: Mixture) -> dict:
    """Lambda found by least squares, and the difference of loudness in LU, beside what they should be."""
    parts = np.stack([mixture.a, mixture.b, np.ones_like(mixture.a)], axis=1).astype(np.float64)
    share_a, share_b, _ = np.linalg.lstsq(parts, mixture.waveform.astype(np.float64), rcond=None)[0]
    meter = Meter(RATE)
    heard = [
        meter.integrated_loudness(share * part.astype(np.float64))
        for share, part in ((share_a, mixture.a), (share_b, mixture.b))
    ]
    expected = 20 * np.log10(mixture.lam / (1 - mixture.lam))
    return {
        "partner": mixture.partner,
        "speed": round(mixture.alignment.speed, 3),
        "lam": round(mixture.lam, 4),
        "lam_error": round(float(share_a / (share_a + share_b) - mixture.lam), 6),
        "louder_lu": round(float(heard[0] - heard[1]), 3),
        "louder_lu_error": round(float(heard[0] - heard[1] - expected), 3),
    }


def measure_mixtures(clips: list[Clip], analysis: list[Analysed], n: int) -> dict:
    """``n`` mixtures, anchored in recordings and scores by turns."""
    result = {}
    for mode in ("synchronous", "paper"):
        dataset, rows = dataset_of(clips, analysis, "audio", mode), []
        for item in batch_items(len(clips), 10 * n, 0, 0):
            anchor = clips[item.index].path.name
            mixture = dataset[item] if len(rows) < n else None
            if mixture is not None and mixture.partner != anchor:
                rows.append({"anchor": anchor, **examine(mixture)})
        result[mode] = {
            "mixtures": len(rows),
            "lam_error_max": max(abs(row["lam_error"]) for row in rows),
            "louder_lu_error_median": round(float(np.median([abs(row["louder_lu_error"]) for row in rows])), 3),
            "louder_lu_error_max": max(abs(row["louder_lu_error"]) for row in rows),
            "each": rows,
        }
    return result


def measure_items(clips: list[Clip], analysis: list[Analysed], n: int = 400) -> dict:
    """Mixtures per second of one core, once recordings are decoded and partners stretched."""
    result = {}
    for kind, mode in SETTINGS:
        dataset = dataset_of(clips, analysis, kind, mode)
        items = [Item(0, i % len(dataset)) for i in range(n)]
        drawn = sum(dataset[item] is not None for item in items)  # decodes and stretches
        before = time.process_time()
        for item in items:
            dataset[item]
        result[f"{kind}_{mode}"] = round(drawn / (time.process_time() - before))
    length = np.random.default_rng(0).normal(0, 0.1, N_SAMPLES).astype(np.float32)
    before = time.process_time()
    block_loudness(length, RATE)
    return {"mixed_items_per_s": result, "loudness_of_one_item_s": round(time.process_time() - before, 4)}


def seconds_of(work: Callable[[], object], *, again: bool = False) -> float:
    """Processor seconds of ``work``, or of doing it ``again``."""
    if again:
        work()
    before = time.process_time()
    work()
    return time.process_time() - before


def measure_conditions(clips: list[Clip], analysis: list[Analysed], n: int = 8) -> dict:
    """Seconds for each mixture of a batch of ``n``, and of plain networks on noise: in float32, all at once."""
    from musicldm.models.clap import embed_audio
    from musicldm.train.diffusion.mixtures import make_maker
    from musicldm.train.diffusion.stage import load_parts
    from vocoder import log_mel_spectrogram

    config = load_config(DiffusionConfig, find_config("mini", "diffusion"), ["init=mini"])
    parts = load_parts(config)
    for network in (parts.vae, parts.vocoder, parts.conditioner.clap):
        network.eval()
    clap, extractor = parts.conditioner.clap, parts.conditioner.feature_extractor
    noise = 0.1 * torch.randn(n, N_SAMPLES, generator=torch.Generator().manual_seed(0))
    frames = config.mel.clip_frames // 8 * 8
    with torch.no_grad():
        mel = log_mel_spectrogram(noise, config.mel)[:, :frames].unsqueeze(1)
        latents = parts.vae.encode(mel).latent_dist.mean
        encode = seconds_of(
            lambda: parts.vae.encode(log_mel_spectrogram(noise, config.mel)[:, :frames].unsqueeze(1)), again=True
        )
        hear = seconds_of(lambda: parts.vocoder(parts.vae.decode(latents).sample.squeeze(1)), again=True)
        embed = seconds_of(lambda: embed_audio(clap, extractor, noise, RATE), again=True)
    floors = {"audio": encode + embed, "latent": 2 * encode + hear + embed}
    result = {}
    for kind, floor in floors.items():
        dataset, items, made = dataset_of(clips, analysis, kind, "synchronous"), [], []
        maker = make_maker(replace(config, mixup=kind), parts, torch.device("cpu"))
        for i in range(len(dataset)):
            if len(items) < n and (mixture := dataset[Item(0, i)]) is not None:
                items.append(Item(0, i))
                made.append(mixture)
        mix = seconds_of(lambda dataset=dataset, items=items: [dataset[item] for item in items], again=True)
        condition = seconds_of(
            lambda maker=maker, dataset=dataset, items=items, made=made: maker.moments_and_condition(
                dataset, items, made
            ),
            again=True,
        )
        result[kind] = {
            "mix_s": round(mix / n, 4),
            "condition_s": round(condition / n, 4),
            "networks_alone_s": round(floor / n, 4),
            "ratio": round((mix + condition) / floor, 3),
        }
    return result


def measure_steps(clips: list[Clip], folder: Path, out: Path, repeats: int = 4) -> dict:
    """Seconds of reading a batch and of its forward and backward pass, by turns without mixtures and with them."""
    from musicldm.models.clap import embed_text
    from musicldm.models.latents import latent_shape
    from musicldm.train.diffusion.cache import build_cache
    from musicldm.train.diffusion.latents import CachedLatents, Example
    from musicldm.train.diffusion.mixtures import make_rounds
    from musicldm.train.diffusion.objectives import Objective, make_scheduler
    from musicldm.train.diffusion.stage import load_parts, losses_of, make_unet

    clips, device = clips[:24], torch.device("cpu")
    settings = ["init=mini", "mixup_probability=1"]
    datasets = {}
    for kind in ("none", "audio", "latent"):
        config = load_config(DiffusionConfig, find_config("mini", "diffusion"), [*settings, f"mixup={kind}"])
        parts = load_parts(config)
        cache = build_cache(clips, parts, config.mel, out / "cache", device)
        rounds = make_rounds(config, clips, Collection(folder), parts, out / kind, device)
        datasets[kind] = CachedLatents(cache, list(range(len(clips))), config, rounds)
    channels, frames, _ = latent_shape(parts.vae, config.mel, config.mel.clip_frames)
    unet = make_unet(config, channels, frames, parts.conditioner.clap.config.projection_dim)
    objective, seconds = Objective(config, make_scheduler(config), 1.0), {kind: [] for kind in datasets}
    with torch.no_grad():
        empty = embed_text(parts.conditioner.clap, parts.conditioner.tokenizer, [""])[0]

    def step(dataset: CachedLatents, number: int) -> None:
        items = batch_items(len(clips), config.batch_size, 0, number)
        example = Example(*torch.utils.data.default_collate([dataset[item] for item in items]))
        losses_of(unet, example, empty, objective)["loss"].backward()

    step(datasets["none"], 0)
    for number in tqdm(range(repeats), desc="steps"):
        for kind, dataset in datasets.items():
            seconds[kind].append(seconds_of(lambda dataset=dataset, number=number: step(dataset, number)))
    medians = {kind: float(np.median(values)) for kind, values in seconds.items()}
    return {
        "batch": config.batch_size,
        "none_s": round(medians["none"], 3),
        "audio_ratio": round(medians["audio"] / medians["none"], 3),
        "latent_ratio": round(medians["latent"] / medians["none"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, help="a folder of recordings to mix beside the scores")
    parser.add_argument("--soundfont", type=Path, default=None)
    parser.add_argument("--mixtures", type=int, default=40)
    parser.add_argument("--only", default="mixtures,items,conditions,steps")
    parser.add_argument("--out", type=Path, default=Path("recipes/mixup_experiment/results/items.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "collection"
        folder.mkdir()
        make_collection(folder, options.recordings, options.soundfont or find_soundfont())
        analysis, clips = analyse_collection(folder), load_clips(folder, CLIP_S)
        about = {"collection": {"recordings": len(analysis), "clips": len(clips)}}
        measures = {
            "mixtures": lambda: measure_mixtures(clips, analysis, options.mixtures),
            "items": lambda: measure_items(clips, analysis),
            "conditions": lambda: measure_conditions(clips, analysis),
            "steps": lambda: measure_steps(clips, folder, Path(scratch)),
        }
        for name in options.only.split(","):
            keep(options.out, {name: about | measures[name]()})


if __name__ == "__main__":
    main()
