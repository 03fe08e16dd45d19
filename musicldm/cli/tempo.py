"""Options for tempo, bars and loops, and what they and a recipe together ask for."""

from __future__ import annotations

import argparse

from musicldm.cli.music import SETTING
from musicldm.editing.tempo import FASTEST_BPM, SLOWEST_BPM
from musicldm.generate.recipe import TEMPO

OPTIONS = ("bpm", "bars", "meter", "force")


def add_bpm(parser: argparse.ArgumentParser) -> None:
    """``--bpm`` and ``--force``."""
    parser.add_argument(
        "--bpm",
        type=float,
        metavar="BPM",
        help=f"bring the music to this tempo ({SLOWEST_BPM:g} to {FASTEST_BPM:g}), half and double time being the "
        "same: candidates are made and measured until one comes near, which is stretched by at most 8 %%; if none "
        "does, the exit code is 2. A model that takes clicks hears one on each beat. Music that follows chords, notes "
        "or a recording keeps their time: it is measured, and neither stretched nor refused",
        **SETTING,
    )
    parser.add_argument(
        "--force", action="store_true", help="take the candidate of the nearest tempo, however far it is", **SETTING
    )


def tempo_settings(args: argparse.Namespace, chosen: dict, recipe: dict) -> dict:
    """The settings of tempo and loop, and what else follows from them, for `Request`.

    Those of ``recipe``, with the options given beside it. Only with none (``chosen`` are those of music in general) is
    the same candidate made again; else they are chosen anew.
    """
    given = {name: getattr(args, name) for name in OPTIONS if hasattr(args, name)}
    own = {name: recipe[name] for name in ("loop", *TEMPO) if recipe.get(name)}
    if "seconds" in chosen:
        own = {name: value for name, value in own.items() if name in ("loop", "bpm") and "bars" not in own}
        own |= {"loop": True} if recipe.get("loop") else {}
    if given or chosen or args.prompts or getattr(args, "file", None):
        own.pop("take", None)
    settings = own | given
    if settings.get("bars") is not None:
        settings["seconds"] = chosen.get("seconds")  # the recipe's, to the sample, follow from the bars
    if settings.get("bpm") is not None and not recipe.get("bpm") and "candidates" not in chosen:
        settings["candidates"] = None
    return settings
