"""What the commands that make music share: options for models, samplers, comparison and output, and progress."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from musicldm.cli.common import add_adapter_arguments, positive, seed_type, share
from musicldm.generate.environment import DTYPES
from musicldm.generate.recipe import DEFAULTS
from musicldm.generate.settings import MOST_CANDIDATES
from musicldm.sampling.schedulers import SCHEDULERS

MEMORY_TO_MENTION = 2**30  # bytes
SETTING = {"default": argparse.SUPPRESS}  # one that was not given is absent, so that a recipe can supply it


def add_settings(parser: argparse.ArgumentParser) -> None:
    """What the music is made with."""
    parser.add_argument(
        "--model", help=f"a bundled model, a folder, or owner/name on the hub (default: {DEFAULTS['model']})", **SETTING
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
        help="make N for each prompt and keep the one that fits it best, by CLAP (default: 1); with --bpm, how many "
        "may be made until one comes near the tempo (default: 16)",
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


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where results go, and what computes them."""
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="folder for the results")
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


def given(args: argparse.Namespace) -> dict:
    """The settings, the seed and how the model is opened, as far as they were given on the command line."""
    return {name: getattr(args, name) for name in (*DEFAULTS, "seed") if hasattr(args, name)}


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
