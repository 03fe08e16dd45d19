"""``musicldm generate``: descriptions in, audio files with pictures and recipes out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from musicldm.audio import FORMATS
from musicldm.audio.output import free_name, output_folder, slug
from musicldm.audio.text import text_lines
from musicldm.cli.common import load_quietly, no_garbage_collection, positive, report
from musicldm.cli.music import (
    MEMORY_TO_MENTION,
    SETTING,
    add_comparison,
    add_output,
    add_settings,
    given,
    progress_bars,
)
from musicldm.cli.sketch import add_along, add_meter, add_sketch, context_settings
from musicldm.cli.tempo import add_bpm, tempo_settings
from musicldm.generate.recipe import DEFAULTS, OPENING, Request, load_recipe, random_seed, warn_of_changes
from musicldm.generate.sections import read_sections


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what the music should be like")
    parser.add_argument("--file", type=Path, help="a text file with one prompt a line")
    parser.add_argument(
        "--sections",
        type=Path,
        metavar="FILE",
        help="make one long piece of the sections that this text file lists, one a line: seconds and a prompt, such as "
        "'20 calm piano', or bars with --bpm, such as '8 bars drums come in'",
    )
    parser.add_argument(
        "--from",
        dest="recipe",
        type=Path,
        metavar="AUDIO",
        help="make the music of this generated file again; options given beside it change it",
    )
    parser.add_argument(
        "--seconds",
        type=positive(float),
        help="length (default: that of what is followed, else what the model was trained on, about 10; a model keeps "
        "one texture throughout, so that beyond about 30 it repeats itself rather than develops: see --sections)",
        **SETTING,
    )
    add_bpm(parser)
    add_meter(parser, "of --bpm and --chords")
    add_sketch(parser)
    add_along(parser)
    add_settings(parser)
    add_comparison(parser)
    add_output(parser)
    parser.add_argument("--format", choices=FORMATS, default="wav")
    parser.set_defaults(several="prompts")


def run(args: argparse.Namespace) -> None:
    """Write ``NAME.wav`` and ``NAME.png`` for each prompt, and ``NAME.mid`` where it follows a score."""
    chosen = given(args)
    recipe = load_recipe(args.recipe, chosen) if args.recipe else {}
    settings = {name: chosen.get(name, recipe.get(name, default)) for name, default in DEFAULTS.items()}
    opening = {name: settings.pop(name) for name in OPENING}
    if args.sections is None:
        settings |= tempo_settings(args, chosen, recipe)
    settings = context_settings(args, chosen, recipe, settings)
    requests = collect_requests(args, chosen.get("seed", recipe.get("seed")), settings, recipe)
    with output_folder(args.out):
        generate(args, opening, requests, recipe)


def collect_requests(args: argparse.Namespace, seed: int | None, settings: dict, recipe: dict) -> list[Request]:
    """What is asked for: music for each prompt, or one piece in sections; that of ``recipe`` if nothing else is.

    Raises:
        ValueError: if there is nothing, or both.
        OSError: if a file cannot be read.
    """
    if args.sections is not None:
        if args.prompts or args.file:
            raise ValueError("--sections has the prompts in its file; leave the others out")
        if hasattr(args, "seconds"):
            raise ValueError("--sections has the lengths in its file; leave --seconds out")
        sections = read_sections(args.sections, getattr(args, "bpm", None), getattr(args, "meter", None))
    else:
        sections = () if args.prompts or args.file or hasattr(args, "seconds") else recipe.get("sections", ())
    if sections:
        seed = random_seed() if seed is None else seed
        return [Request.of_sections(sections, seed, **settings | {"seconds": None})]
    prompts = collect_prompts(args.prompts, args.file, recipe)
    return Request.for_prompts(prompts, seed, **settings)


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


def write(args: argparse.Namespace, piece) -> None:
    """One result: audio, picture, and a line on stdout."""
    recipe = piece.recipe
    stem = free_name(
        args.out, f"{slug(recipe['prompt'])}_seed{recipe['seed']}", (*(f".{kind}" for kind in FORMATS), ".png", ".mid")
    )
    audio, figure = (stem.with_name(f"{stem.name}.{suffix}") for suffix in (args.format, "png"))
    piece.save(audio)
    if not args.no_figure:
        piece.figure(figure)
    files = {"file": str(audio), "figure": None if args.no_figure else str(figure)}
    report(args.json, files | piece.recipe_at(audio), str(audio))
