"""Does the copy guard help where a model copies? Denoisers that know 20 clips and little else.

    python -m benchmarks.guard FOLDER --work DIR --out benchmarks/results/guard.json

FOLDER is an audio folder with ``piece_id`` in its metadata (``recipes.mini.data`` makes one as ``train``). What
training on 20 clips leads to in the end, the minimum of the loss, is known: the mean of the 20 clips' latents, weighted
by how likely the noisy latents and the condition come from each. In the place of the UNet of `mini` it copies
(``memory``); with weights judged in each second by itself it behaves as convolutions do that overfit, and
pieces such copies together (``mosaic``). With ``--train-steps`` there is a third, what a user's own training on 20
clips makes of the UNet of `mini` (``fine-tuned``). Autoencoder, CLAP, vocoder, sampler and guard are those of a user.

Ho et al. (2020), https://arxiv.org/abs/2006.11239; Kamb and Ganguli (2025), An analytic theory of creativity in
convolutional diffusion models, https://arxiv.org/abs/2412.20292 (the local score machine).

The index holds these and 80 clips of other pieces, so that its thresholds are those of a collection. Music is made for
their captions: without guard, drawing again, and drawing again with steering. A run that was stopped goes on.

Where steering leaves no music of a draw, the guard calls it a hum. With ``--recordings`` it is also measured how far
music moves, by which it tells them apart: those recordings, and the renderings of FOLDER that are in no index.

    python -m benchmarks.guard FOLDER --work DIR --clip-s 5.12 --prompts 12 --strengths 0 0.25 0.5 1 \\
        --recordings RECORDINGS --out benchmarks/results/guard_floor.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional

from benchmarks.copies import draw_pieces
from benchmarks.results import keep
from musicldm.analysis import SILENCE
from musicldm.audio import read_audio, write_audio, write_whole
from musicldm.data.metadata import audio_files
from musicldm.evaluate.intervals import bootstrap, paired_difference, share
from musicldm.generate.environment import model_revision
from musicldm.models.clap import embed_audio
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.models.loading import bundled_models
from musicldm.novelty import CopyError, CopyGuard, NoveltyIndex, build_index
from musicldm.novelty.steering import FLOOR_DB, movement_db
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.sampling.schedulers import make_scheduler
from musicldm.train import run
from musicldm.train.run_folder import CONFIG_FILE
from vocoder import mel_config

LEARNED, OTHERS, VALIDATION = 20, 80, 8  # clips
CONDITION = 20.0  # log-likelihood of a clip per cosine similarity of its caption to the prompt
MODELS = {"memory": None, "mosaic": 1.0}  # seconds that are judged together
SAMPLER_STEPS = 20
STRENGTHS = (0.0, 1.0)  # of steering, at first; 0 only draws again
STRETCHES_S = (2.0, 5.12, 10.24)  # of which the movement is measured


def collect(source: Path, rows: list[dict], folder: Path, clip_s: float) -> Path:
    """An audio folder of the first ``clip_s`` of each of ``rows``."""
    lines = []
    for row in rows:
        waveform, rate = read_audio(source / row["file_name"])
        (folder / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        write_audio(folder / row["file_name"], waveform[: round(clip_s * rate)], rate)
        names = ("file_name", "text", "piece_id", "title", "licence", "split")
        kept = {name: row[name] for name in names if row.get(name)}
        lines.append(json.dumps(kept) + "\n")
    write_whole(folder / "metadata.jsonl", "".join(lines).encode())
    return folder


class Ideal(UNet2DConditionModel):
    """In the place of a UNet: predicts v of the mean of what it learned, given the noisy latents and the condition.

    ``learned (N, C, T, F)`` are scaled latents, ``conditions (N, D)`` unit vectors, ``alpha_bar (steps,)`` the
    schedule. ``window`` latent frames are judged together; None for all.
    """

    learned: torch.Tensor
    conditions: torch.Tensor
    alpha_bar: torch.Tensor
    window: int | None

    def forward(self, sample, timestep, encoder_hidden_states=None, class_labels=None, **_):
        signal, noise = self.alpha_bar[timestep].sqrt(), (1 - self.alpha_bar[timestep]).sqrt()
        distance = (sample[:, None] - signal * self.learned[None]).square().sum(dim=(2, 4))  # (B, N, T)
        if self.window is None:
            distance = distance.sum(dim=2, keepdim=True)
        else:
            ones = torch.ones(1, 1, self.window)
            distance = functional.conv1d(distance.flatten(0, 1)[:, None], ones, padding="same").view_as(distance)
        likely = CONDITION * (class_labels @ self.conditions.T)[:, :, None] - distance / (2 * noise**2)
        x0 = torch.einsum("bnt,nctf->bctf", likely.softmax(dim=1).expand(-1, -1, sample.shape[2]), self.learned)
        return ((signal * sample - x0) / noise,)


def ideal_pipeline(model: str, learned: list[dict], collection: Path, window_s: float | None) -> MusicLDMPipeline:
    """``model`` with an `Ideal` of the clips ``learned`` for a UNet."""
    pipeline = MusicLDMPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.scheduler.config.prediction_type != "v_prediction":
        raise SystemExit(f"{model} predicts {pipeline.scheduler.config.prediction_type}, this needs v_prediction")
    frame_s = pipeline.vae_scale_factor * mel_config(pipeline.vocoder).hop_length / pipeline.sampling_rate
    latents = [pipeline.encode_audio(*read_audio(collection / row["file_name"]))[0] for row in learned]
    unet = Ideal(
        sample_size=latents[0].shape[1],
        in_channels=latents[0].shape[0],
        out_channels=latents[0].shape[0],
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=pipeline.unet.config.projection_class_embeddings_input_dim,
        class_embeddings_concat=True,
    )
    unet.learned, unet.alpha_bar = torch.stack(latents), pipeline.scheduler.alphas_cumprod
    unet.conditions = pipeline.embed_texts([row["text"] for row in learned])
    unet.window = None if window_s is None else 2 * round(window_s / frame_s / 2) + 1
    pipeline.unet = unet
    return pipeline


def fine_tuned_pipeline(
    model: str, folder: Path, out: Path, clip_s: float, steps: int, settings: list[str]
) -> MusicLDMPipeline:
    """``model`` after ``musicldm train diffusion init=model`` on clips of ``clip_s``, each with its caption."""
    if not (out / "final").is_dir():
        length = [f"steps={steps}", f"cooldown_steps={steps // 4}", f"validate_every={steps}"]
        own = [f"init={model}", f"mel.clip_s={clip_s}", "text_condition=1.0", "trackers=[]", *length, *settings]
        run("diffusion", "mini", folder, out, resume=(out / CONFIG_FILE).exists(), overrides=own)
    pipeline = MusicLDMPipeline.from_pretrained(out / "final")
    pipeline.scheduler = make_scheduler("dpm++", pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def options_of(clip_s: float, seed: int) -> dict:
    return {"audio_length_in_s": clip_s, "num_inference_steps": SAMPLER_STEPS, "guidance_scale": 1.0, "seed": seed}


def make(guard: CopyGuard, prompts: list[str], clip_s: float, seed: int, mode: str) -> tuple:
    """One waveform for each prompt, guarded as ``mode`` says: what was found of each; the audio; processor time."""
    pipeline, refused = guard.pipeline, ()
    options, began = options_of(clip_s, seed), time.process_time()
    try:
        output = guard(prompts, mode=mode, **options)
    except CopyError as error:
        output, refused = error.output, error.refused
    seconds = time.process_time() - began
    audios = torch.from_numpy(output.audios)
    heard = embed_audio(pipeline.text_encoder, pipeline.feature_extractor, audios, pipeline.sampling_rate)
    similarity = (heard * pipeline.embed_texts(prompts)).sum(dim=1).tolist()
    items = []
    for i, found in enumerate(output.novelty):
        names = ("verdict", "similarity", "too_close", "draws", "movement_db", "steering", "hum")
        item = {name: found[name] for name in names}
        item |= {name: found["passage"][name] for name in ("recording", "score")}
        items.append(item | {"prompt": prompts[i], "clap": similarity[i], "refused": i in refused})
    return items, output.audios, seconds


def compare(
    pipeline: MusicLDMPipeline, index: NoveltyIndex, prompts: list[str], options: argparse.Namespace, folder: Path
) -> dict:
    """All modes for the same prompts and seeds; what was made with the first seed is kept in ``folder``."""
    clip_s, seeds = options.clip_s, options.seeds
    modes = {"report": ("report", 0.0)} | {f"avoid, strength {s:g}": ("avoid", s) for s in options.strengths}
    told, seconds = {}, {}
    for name, (mode, strength) in modes.items():
        made = folder / f"{name}.json"
        if not made.is_file():
            items, spent = [], 0.0
            guard = CopyGuard(pipeline, index, strength)
            for seed in range(seeds):
                some, audios, processor_s = make(guard, prompts, clip_s, 1000 * seed, mode)
                items, spent = items + some, spent + processor_s
                for i, waveform in enumerate(audios if seed == 0 else ()):
                    (folder / name).mkdir(parents=True, exist_ok=True)
                    write_audio(folder / name / f"{i:02d}.wav", waveform, pipeline.sampling_rate)
            write_whole(made, json.dumps({"items": items, "processor_s": spent}).encode())
        kept = json.loads(made.read_text())
        told[name], seconds[name] = kept["items"], kept["processor_s"] / len(kept["items"])
    began = time.process_time()
    pipeline(prompts, **options_of(clip_s, 0))
    unguarded = (time.process_time() - began) / len(prompts)
    return {
        name: summary(items, told["report"]) | {"processor_s_of_unguarded": seconds[name] / unguarded}
        for name, items in told.items()
    }


def summary(items: list[dict], before: list[dict]) -> dict:
    """Shares and means over the items of a mode; ``before`` are the same prompts and seeds as they first came."""

    def shared(values: list) -> dict:
        return share(np.array(values))._asdict()

    pairs = [(a["clap"], b["clap"]) for a, b in zip(items, before, strict=True) if not a["refused"]]
    told = {
        "prompts": len(items),
        "drawn_last_too_close": shared([item["too_close"] for item in items]),
        "drawn_last_a_copy": shared([item["verdict"] == "copy" for item in items]),
        "refused": shared([item["refused"] for item in items]),
        "refused_as_hums": shared([item["hum"] for item in items]),
        "draws": float(np.mean([item["draws"] for item in items])),
        "movement_db": sorted(round(item["movement_db"], 2) for item in items),
        "score_median": float(np.median([item["score"] for item in items])),
        "similarity_median": float(np.median([item["similarity"] for item in items])),
    }
    if len(pairs) > 2:
        after, plain = np.array(pairs).T
        change, chance = paired_difference(plain, after)
        told["clap_similarity_of_answers"] = bootstrap(np.mean, after)._asdict()
        told["clap_similarity_change"] = change._asdict() | {"probability_by_chance": chance}
    return told


def movements(files: list[Path]) -> dict:
    """How far stretches of ``files`` move, in dB: percentiles, for each length."""
    told = {}
    for seconds in STRETCHES_S:
        moved = []
        for file in files:
            waveform, rate = read_audio(file)
            length = round(seconds * rate)
            stretches = [waveform[i : i + length] for i in range(0, len(waveform) - length + 1, length)]
            moved += [movement_db(one, rate) for one in stretches if np.abs(one).max() >= SILENCE]
        percentiles = {f"{p:g} %": float(np.percentile(moved, p)) for p in (0, 1, 5, 50)}
        below = float(np.mean(np.array(moved) < FLOOR_DB))
        told[f"{seconds:g} s"] = {"stretches": len(moved), "share_below_floor": below} | percentiles
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the clips, the model, its index and music")
    parser.add_argument("--model", default="mini", help="whose autoencoder, CLAP and vocoder to use")
    parser.add_argument("--clip-s", type=float, default=2.56, help="seconds of the clips and of what is made")
    parser.add_argument("--prompts", type=int, default=LEARNED, help="captions of the 20 that music is made for")
    parser.add_argument("--seeds", type=int, default=1, help="draws for each caption")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pieces")
    parser.add_argument("--train-steps", type=int, default=0, help="of training the model on the 20; 0: do not")
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS, help="of steering, at first")
    parser.add_argument("--recordings", type=Path, help="folder of recordings whose movement is measured")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of that training")
    parser.add_argument("--out", type=Path)
    options = parser.parse_intermixed_args()
    rows = draw_pieces(options.folder, options.seed)
    rows = list({row["text"]: row for row in rows}.values())  # one clip of each caption
    learned, others = rows[:LEARNED], rows[LEARNED : LEARNED + OTHERS]
    work = options.work
    if not (work / "index").is_dir():
        embedder = ClapEmbedder.from_model(bundled_models().get(options.model, Path(options.model)))
        build_index(
            collect(options.folder, learned + others, work / "collection", options.clip_s), work / "index", embedder
        )
    index = NoveltyIndex(work / "index")
    report = {
        "model": options.model,
        "model_revision": model_revision(bundled_models().get(options.model, Path(options.model))),
        "learned": [row["file_name"] for row in learned],
        "clip_s": options.clip_s,
        "indexed_clips": len(index),
        "thresholds": {"score": index.score_threshold, "similarity": index.similarity_threshold},
        "sampler_steps": SAMPLER_STEPS,
        "condition": CONDITION,
        "results": {},
    }
    prompts = [row["text"] for row in learned[: options.prompts]]
    for name in [*MODELS, *(["fine-tuned"] if options.train_steps else [])]:
        if name in MODELS:
            pipeline = ideal_pipeline(options.model, learned, work / "collection", MODELS[name])
        else:
            to_learn = [row | {"split": "train"} for row in learned]
            to_learn += [row | {"split": "validation"} for row in others[:VALIDATION]]
            folder = collect(options.folder, to_learn, work / "learned", options.clip_s)
            pipeline = fine_tuned_pipeline(
                options.model, folder, work / "trained", options.clip_s, options.train_steps, options.settings
            )
        folder = work / "music" / name
        report["results"][name] = compare(pipeline, index, prompts, options, folder)
    if options.recordings:
        held_out = [options.folder / row["file_name"] for row in draw_pieces(options.folder, options.seed, tuning=True)]
        held_out += [options.folder / row["file_name"] for row in rows[LEARNED + OTHERS :]]
        kinds = {
            "renderings": held_out,
            "recordings": [options.recordings / name for name in audio_files(options.recordings)],
        }
        report["floor_db"] = FLOOR_DB
        report["movement_db"] = {name: movements(files) for name, files in kinds.items()}
    print(json.dumps(report, indent=1))
    if options.out:
        keep(options.out, report)


if __name__ == "__main__":
    main()
