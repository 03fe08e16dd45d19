"""``musicldm loop``: descriptions in, loops out, which close and have a tempo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from musicldm.audio import FORMATS
from musicldm.audio.output import output_folder
from musicldm.cli.common import positive
from musicldm.cli.generate import collect_prompts, generate
from musicldm.cli.music import SETTING, add_comparison, add_output, add_settings, given
from musicldm.cli.sketch import add_meter, add_sketch, bars_of, context_settings
from musicldm.cli.tempo import add_bpm, tempo_settings
from musicldm.generate.recipe import DEFAULTS, OPENING, Request, load_recipe

BARS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="what the music should be like")
    parser.add_argument(
        "--from",
        dest="recipe",
        type=Path,
        metavar="AUDIO",
        help="make this loop again, or a loop like this generated file; options given beside it change it",
    )
    add_bpm(parser)
    parser.add_argument(
        "--bars",
        type=positive(int),
        help="length of a loop with --bpm, from a downbeat on: bars x beats x 60 / bpm seconds (default: those of the "
        f"score, or {BARS})",
        **SETTING,
    )
    add_meter(parser, "of --bars and --chords")
    add_sketch(parser)
    parser.add_argument(
        "--seconds",
        type=positive(float),
        help="length of a loop without --bpm (default: that of the score, or what the model was trained on, about 10)",
        **SETTING,
    )
    add_settings(parser)
    add_comparison(parser)
    add_output(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="wav",
        help="only wav tells audio workstations of the loop: loop points (smpl), beats and tempo (acid)",
    )
    parser.set_defaults(several="prompts")


def run(args: argparse.Namespace) -> None:
    """Write ``NAME.wav`` and ``NAME.png`` for each prompt."""
    chosen = given(args)
    recipe = load_recipe(args.recipe, chosen) if args.recipe else {}
    settings = {name: chosen.get(name, recipe.get(name, default)) for name, default in DEFAULTS.items()}
    opening = {name: settings.pop(name) for name in OPENING}
    settings |= tempo_settings(args, chosen, recipe) | {"loop": True}
    settings = context_settings(args, chosen, recipe, settings)
    if settings.get("bpm") is not None and settings.get("bars") is None:
        if "seconds" in chosen:
            raise ValueError("a loop with --bpm is counted in bars; give --bars instead of --seconds")
        settings |= {"bars": bars_of(settings, BARS), "seconds": None}
    prompts = collect_prompts(args.prompts, None, recipe)
    requests = Request.for_prompts(prompts, chosen.get("seed", recipe.get("seed")), **settings)
    if args.format != "wav":
        print(
            f"musicldm: {args.format.upper()} has no place for loop points and tempo, they are in the recipe alone",
            file=sys.stderr,
        )
    with output_folder(args.out):
        generate(args, opening, requests, recipe)
