"""``musicldm generate``: descriptions in, audio files with pictures and recipes out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from musicldm.audio import FORMATS
from musicldm.audio.output import free_name, output_folder, slug
from musicldm.audio.text import text_lines
from musicldm.cli.common import (
    add_adapter_arguments,
    load_quietly,
    no_garbage_collection,
    positive,
    report,
    seed_type,
    share,
)
from musicldm.generate.environment import DTYPES
from musicldm.generate.recipe import (
    DEFAULTS,
    MOST_CANDIDATES,
    OPENING,
    Request,
    load_recipe,
    warn_of_changes,
)
from musicldm.sampling.schedulers import SCHEDULERS

MEMORY_TO_MENTION = 2**30  # bytes


SETTING = {"default": argparse.SUPPRESS}  # one that was not given is absent, so that a recipe can supply it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what the music should be like")
    parser.add_argument("--file", type=Path, help="a text file with one prompt a line")
    parser.add_argument(
        "--from",
        dest="recipe",
        type=Path,
        metavar="AUDIO",
        help="make the music of this generated file again; options given beside it change it",
    )
    add_settings(parser)
    add_comparison(parser)
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="folder for the results")
    parser.add_argument("--format", choices=FORMATS, default="wav")
    parser.add_argument("--device", default="auto", help="auto (the fastest there is), cpu, cuda, cuda:1, mps, ...")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="number format (default: float16 on CUDA, float32 elsewhere)", **SETTING
    )
    parser.add_argument(
        "--fast",
        action=argparse.BooleanOptionalAction,
        help="on a CPU that computes it natively, use bfloat16: nearly the same music in less time (default: yes)",
        **SETTING,
    )
    parser.add_argument("--no-figure", action="store_true", help="no picture beside the audio")
    parser.add_argument("--json", action="store_true", help="one JSON object for each file on stdout")
    parser.set_defaults(several="prompts")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """What the music is made with."""
    parser.add_argument(
        "--model", help=f"a bundled model, a folder, or owner/name on the hub (default: {DEFAULTS['model']})", **SETTING
    )
    parser.add_argument(
        "--seconds",
        type=positive(float),
        help="length (default: what the model was trained on, about 10; a model keeps one texture throughout, so that "
        "beyond about 30 it repeats itself rather than develops)",
        **SETTING,
    )
    parser.add_argument(
        "--steps", type=positive(int), help=f"steps of the sampler (default: {DEFAULTS['steps']})", **SETTING
    )
    parser.add_argument(
        "--guidance",
        type=positive(float),
        help=f"how strongly to follow the prompt; 1 is not at all, and twice as fast (default: {DEFAULTS['guidance']})",
        **SETTING,
    )
    parser.add_argument(
        "--guidance-interval",
        type=share,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="noise, as shares from 0 to 1, between which guidance works; at more noise it makes music less varied, at "
        f"less it only takes time (default: {' '.join(map(str, DEFAULTS['guidance_interval']))})",
        **SETTING,
    )
    parser.add_argument("--negative", metavar="TEXT", help="what the music should not be like", **SETTING)
    parser.add_argument(
        "--seed", type=seed_type, help="the same seed makes the same music (default: a random one)", **SETTING
    )
    parser.add_argument(
        "--candidates",
        type=positive(int, most=MOST_CANDIDATES),
        metavar="N",
        help="make N for each prompt and keep the one that fits it best, by CLAP (default: 1)",
        **SETTING,
    )
    parser.add_argument(
        "--scheduler",
        metavar="NAME",
        help=f"sampler: {', '.join(SCHEDULERS)} (default: {DEFAULTS['scheduler']})",
        **SETTING,
    )
    add_adapter_arguments(parser, **SETTING)


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """How the music is compared with the training set."""
    parser.add_argument(
        "--novelty",
        metavar="MODE",
        help="compare with the training set: report, avoid (draw again what comes too near; exit code 3 and no file if "
        "nothing else comes), least_similar (the same, but always a file); needs --index, or a model that carries one",
        **SETTING,
    )
    parser.add_argument("--index", metavar="INDEX", help="that `musicldm novelty index` wrote", **SETTING)
    parser.add_argument(
        "--max-similarity",
        type=float,
        metavar="COSINE",
        help="what is too near (default: what 1 %% of other music exceeds)",
        **SETTING,
    )


def run(args: argparse.Namespace) -> None:
    """Write ``NAME.wav`` and ``NAME.png`` for each prompt."""
    given = {name: getattr(args, name) for name in (*DEFAULTS, "seed") if hasattr(args, name)}
    recipe = load_recipe(args.recipe, given) if args.recipe else {}
    settings = {name: given.get(name, recipe.get(name, default)) for name, default in DEFAULTS.items()}
    opening = {name: settings.pop(name) for name in OPENING}
    prompts = collect_prompts(args.prompts, args.file, recipe)
    requests = Request.for_prompts(prompts, given.get("seed", recipe.get("seed")), **settings)
    with output_folder(args.out):
        generate(args, opening, requests, recipe)


def collect_prompts(prompts: list[str], file: Path | None, recipe: dict) -> list[str]:
    """The prompts of a call; those of a recipe if there are no others.

    Raises:
        ValueError: if there are none.
        OSError: if ``file`` cannot be read.
    """
    prompts = list(prompts)
    if file is not None:
        try:
            lines = text_lines(file.read_text(encoding="utf-8-sig"))
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


def generate(args: argparse.Namespace, opening: dict, requests: list[Request], recipe: dict) -> None:
    """Make and write the music of all requests; ``recipe`` is that of the file to be made again, or empty."""
    with no_garbage_collection():
        from musicldm.generate.session import Session
    load_quietly()
    session = Session(device=args.device, **opening)
    warn_of_changes(recipe, session.about(requests[0]))
    if (memory := session.memory(requests)) >= MEMORY_TO_MENTION:
        print(f"musicldm: decoding will take about {memory / 2**30:.1f} GiB of memory", file=sys.stderr)
    for piece in session.run_many(requests, progress=progress_bars()):
        write(args, piece)


def progress_bars() -> Callable:
    """What shows the progress of a session: a bar for each batch, on a terminal only."""
    from tqdm import tqdm

    bar = None

    def show(progress) -> None:
        nonlocal bar
        if progress.step == 1:
            which = f"{progress.first}-{progress.last}" if progress.last > progress.first else str(progress.first)
            about = f"music {which} of {progress.total}"
            bar = tqdm(total=progress.steps, desc=about, unit="step", leave=False, disable=None)
        bar.update()
        if progress.step == progress.steps:
            bar.close()

    return show


def write(args: argparse.Namespace, piece) -> None:
    """One result: audio, picture, and a line on stdout."""
    recipe = piece.recipe
    stem = free_name(
        args.out, f"{slug(recipe['prompt'])}_seed{recipe['seed']}", (*(f".{kind}" for kind in FORMATS), ".png")
    )
    audio, figure = (stem.with_name(f"{stem.name}.{suffix}") for suffix in (args.format, "png"))
    piece.save(audio)
    if not args.no_figure:
        piece.figure(figure)
    report(args.json, {"file": str(audio), "figure": None if args.no_figure else str(figure), **recipe}, str(audio))
