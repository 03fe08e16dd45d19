"""``musicldm generate``: descriptions in, audio files with pictures and recipes out."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from musicldm.audio import FORMATS, read_recipe, write_audio
from musicldm.audio.figures import save_figure
from musicldm.audio.files import free_name, slug
from musicldm.cli.adapters import add_adapter_arguments, load_adapters, warn_of_changes
from musicldm.cli.common import (
    DTYPES,
    choose_device,
    choose_dtype,
    load_quietly,
    no_garbage_collection,
    output_folder,
    positive,
    report,
    share,
)
from musicldm.novelty import CopyError
from musicldm.sampling.schedulers import GUIDANCE, GUIDANCE_INTERVAL, SAMPLER, SCHEDULERS, STEPS

# What a recipe holds beside prompt and seed, and what the command does unless told otherwise.
DEFAULTS = {
    "model": "mini",
    "seconds": None,  # the length that the model was trained on
    "steps": STEPS,
    "guidance": GUIDANCE,
    "guidance_interval": list(GUIDANCE_INTERVAL),
    "negative": "",
    "candidates": 1,
    "scheduler": SAMPLER,
    "dtype": "auto",
    "fast": True,
    "lora": None,
    "concept": None,
    "novelty": None,
    "index": None,
    "max_similarity": None,
}
RECIPE_TYPES = {
    "prompt": str,
    "seed": int,
    "model": str,
    "seconds": int | float,
    "steps": int,
    "guidance": int | float,
    "negative": str,
    "candidates": int,
    "scheduler": str,
    "dtype": str,
}
WAVEFORMS_AT_ONCE = {"cpu": 4}  # prompts times candidates in one batch; more gains nothing on a CPU
WAVEFORMS_AT_ONCE_ELSEWHERE = 16
MOST_CANDIDATES = 1000
RANDOM_SEEDS = 1_000_000  # few digits, as they become part of the file's name
MEMORY_TO_MENTION = 2**30  # bytes
HIGHEST_SEED = 2**63 - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # A setting that was not given is absent, so that a recipe can supply it.
    setting = {"default": argparse.SUPPRESS}
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what the music should be like")
    parser.add_argument("--file", type=Path, help="a text file with one prompt a line")
    parser.add_argument(
        "--from",
        dest="recipe",
        type=Path,
        metavar="AUDIO",
        help="make the music of this generated file again; options given beside it change it",
    )
    parser.add_argument(
        "--model", help=f"a bundled model, a folder, or owner/name on the hub (default: {DEFAULTS['model']})", **setting
    )
    parser.add_argument(
        "--seconds", type=positive(float), help="length (default: what the model was trained on)", **setting
    )
    parser.add_argument(
        "--steps", type=positive(int), help=f"steps of the sampler (default: {DEFAULTS['steps']})", **setting
    )
    parser.add_argument(
        "--guidance",
        type=positive(float),
        help=f"how strongly to follow the prompt; 1 is not at all, and twice as fast (default: {DEFAULTS['guidance']})",
        **setting,
    )
    parser.add_argument(
        "--guidance-interval",
        type=share,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="noise, as shares from 0 to 1, between which guidance works; at more noise it makes music less varied, at "
        f"less it only takes time (default: {' '.join(map(str, DEFAULTS['guidance_interval']))})",
        **setting,
    )
    parser.add_argument("--negative", metavar="TEXT", help="what the music should not be like", **setting)
    parser.add_argument(
        "--seed", type=seed_type, help="the same seed makes the same music (default: a random one)", **setting
    )
    parser.add_argument(
        "--candidates",
        type=positive(int, most=MOST_CANDIDATES),
        metavar="N",
        help="make N for each prompt and keep the one that fits it best, by CLAP (default: 1)",
        **setting,
    )
    parser.add_argument(
        "--scheduler",
        metavar="NAME",
        help=f"sampler: {', '.join(SCHEDULERS)} (default: {DEFAULTS['scheduler']})",
        **setting,
    )
    add_adapter_arguments(parser, **setting)
    parser.add_argument(
        "--novelty",
        metavar="MODE",
        help="compare with the training set: report, avoid (draw again what comes too near; exit code 3 and no file if "
        "nothing else comes), least_similar (the same, but always a file); needs --index, or a model that carries one",
        **setting,
    )
    parser.add_argument("--index", metavar="INDEX", help="that `musicldm novelty index` wrote", **setting)
    parser.add_argument(
        "--max-similarity",
        type=float,
        metavar="COSINE",
        help="what is too near (default: what 1 %% of other music exceeds)",
        **setting,
    )
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="folder for the results")
    parser.add_argument("--format", choices=FORMATS, default="wav")
    parser.add_argument("--device", default="auto", help="auto (the fastest there is), cpu, cuda, cuda:1, mps, ...")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="number format (default: float16 on CUDA, float32 elsewhere)", **setting
    )
    parser.add_argument(
        "--fast",
        action=argparse.BooleanOptionalAction,
        help="on a CPU that computes it natively, use bfloat16: nearly the same music in less time (default: yes)",
        **setting,
    )
    parser.add_argument("--no-figure", action="store_true", help="no picture beside the audio")
    parser.add_argument("--json", action="store_true", help="one JSON object for each file on stdout")
    parser.set_defaults(several="prompts")


def seed_type(text: str) -> int:
    """An argparse type: a whole number that torch takes as a seed."""
    if not text.isdecimal() or int(text) > HIGHEST_SEED:
        raise argparse.ArgumentTypeError(f"a whole number from 0 to {HIGHEST_SEED} is needed, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """Write ``NAME.wav`` and ``NAME.png`` for each prompt."""
    recipe = usable_recipe(args.recipe) if args.recipe else {}
    settings = {name: getattr(args, name, recipe.get(name, default)) for name, default in DEFAULTS.items()}
    prompts = collect_prompts(args.prompts, args.file, recipe)
    seed = getattr(args, "seed", recipe.get("seed", random.SystemRandom().randrange(RANDOM_SEEDS)))
    if settings["scheduler"] not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {settings['scheduler']!r}; choose one of {', '.join(SCHEDULERS)}")
    if settings["index"] is not None and settings["novelty"] is None:
        raise ValueError("--index is for --novelty, which says what to do with what it finds")
    if settings["max_similarity"] is not None and settings["novelty"] is None:
        raise ValueError("--max-similarity is for --novelty, which says what to do with what is nearer")
    with output_folder(args.out):
        generate(args, settings, prompts, seed, recipe)


def usable_recipe(path: Path) -> dict:
    """The recipe in ``path``; ValueError if it is not one of this command."""
    recipe = read_recipe(path)
    for name, kind in RECIPE_TYPES.items():
        if not isinstance(recipe.get(name), kind):
            raise ValueError(
                f"{path} carries no recipe of `musicldm generate`: its {name} is {recipe.get(name)!r}; "
                "give the options themselves"
            )
    return {"guidance_interval": [0.0, 1.0]} | recipe  # what those did that do not say


def collect_prompts(prompts: list[str], file: Path | None, recipe: dict) -> list[str]:
    """The prompts of a call; those of a recipe if there are no others.

    Raises:
        ValueError: if there are none, or an empty one.
        OSError: if ``file`` cannot be read.
    """
    prompts = list(prompts)
    if blank := [prompt for prompt in prompts if not prompt.strip()]:
        raise ValueError(f"the prompt {blank[0]!r} is empty; describe the music, as in 'calm piano with strings'")
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
        if not any(line.strip() for line in lines):
            raise ValueError(f"{file} holds no prompts; write one on each line")
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts and recipe:
        prompts = [recipe["prompt"]]
    if not prompts:
        raise ValueError("there is no prompt; give one in quotes, or a file of them with --file")
    return prompts


def generate(args: argparse.Namespace, settings: dict, prompts: list[str], seed: int, recipe: dict) -> None:
    """Make and write the music of all prompts; prompt i has the seed ``seed + i * candidates``.

    ``recipe`` is that of the file to be made again, or empty.
    """
    with no_garbage_collection():
        from musicldm.generate.environment import model_revision, package_versions
        from musicldm.models.loading import find_folder
        from musicldm.pipelines.checks import check_memory, decoding_memory, plan_lengths
        from musicldm.pipelines.text_to_music import MusicLDMPipeline
        from musicldm.sampling.schedulers import make_scheduler

    device = choose_device(args.device)
    dtype = choose_dtype(settings["dtype"], device)
    folder = find_folder(settings["model"], MusicLDMPipeline.download)
    load_quietly()
    pipeline = MusicLDMPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
    adapters = load_adapters(pipeline, settings["lora"], settings["concept"])
    pipeline.optimize(bfloat16=None if settings["fast"] else False)
    pipeline.scheduler = make_scheduler(settings["scheduler"], pipeline.scheduler)
    about = {
        "generated_by": "AI (musicldm)",
        **settings,
        "revision": model_revision(folder),
        "adapters": adapters,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "versions": package_versions(),
    }
    if (revision := recipe.get("revision")) not in (None, about["revision"]):
        print(
            f"musicldm: warning: the recipe was made with revision {revision} of its model, {settings['model']} is "
            f"{about['revision']}: the music will differ",
            file=sys.stderr,
        )
    warn_of_changes(recipe.get("adapters"), adapters)
    if settings["index"] is not None:
        pipeline.load_novelty_index(settings["index"])
    refusals = []
    candidates = settings["candidates"]
    at_once = max(1, WAVEFORMS_AT_ONCE.get(device.type, WAVEFORMS_AT_ONCE_ELSEWHERE) // candidates)
    n_waveforms = candidates * min(at_once, len(prompts))
    _, shape = plan_lengths(pipeline.unet, pipeline.vae, pipeline.vocoder, n_waveforms, settings["seconds"])
    check_memory(pipeline.unet, pipeline.vae, pipeline.vocoder, shape, device)
    if (memory := decoding_memory(pipeline.vae, pipeline.vocoder, shape, device)) >= MEMORY_TO_MENTION:
        print(f"musicldm: decoding will take about {memory / 2**30:.1f} GiB of memory", file=sys.stderr)
    for first in range(0, len(prompts), at_once):
        batch = prompts[first : first + at_once]
        batch_seed = seed + first * candidates
        count = f"{first + 1}-{first + len(batch)}" if len(batch) > 1 else str(first + 1)
        pipeline.set_progress_bar_config(
            desc=f"music {count} of {len(prompts)}",
            unit="step",
            leave=False,
            disable=None,  # None: unless on a terminal
        )
        refused = ()
        try:
            output = pipeline(
                batch,
                audio_length_in_s=settings["seconds"],
                num_inference_steps=settings["steps"],
                guidance_scale=settings["guidance"],
                guidance_interval=settings["guidance_interval"],
                negative_prompt=settings["negative"] or None,
                num_waveforms_per_prompt=candidates,
                seed=batch_seed,
                return_best=1,
                novelty=settings["novelty"],
                max_similarity=settings["max_similarity"],
            )
        except CopyError as error:
            refusals.append(str(error))
            output, refused = error.output, error.refused
        for i, (prompt, waveform) in enumerate(zip(batch, output.audios, strict=True)):
            if i in refused:
                continue
            made = about | {
                "prompt": prompt,
                "seed": batch_seed + i * candidates,
                "seconds": len(waveform) / output.sampling_rate,
                "score": None if output.scores is None else float(output.scores[i, 0]),
                "sampling_rate": output.sampling_rate,
                "nearest_training_clips": None if output.novelty is None else output.novelty[i],
            }
            write(args, waveform, made)
    if refusals:
        raise CopyError(" ".join(refusals))


def write(args: argparse.Namespace, waveform, recipe: dict) -> None:
    """One result: audio, picture, and a line on stdout."""
    stem = free_name(
        args.out, f"{slug(recipe['prompt'])}_seed{recipe['seed']}", (*(f".{kind}" for kind in FORMATS), ".png")
    )
    audio, figure = (stem.with_name(f"{stem.name}.{suffix}") for suffix in (args.format, "png"))
    write_audio(audio, waveform, recipe["sampling_rate"], recipe)
    if not args.no_figure:
        save_figure(figure, waveform, recipe["sampling_rate"], title=recipe["prompt"])
    report(args.json, {"file": str(audio), "figure": None if args.no_figure else str(figure), **recipe}, str(audio))
