"""Options for what music follows (chords, a MIDI file, a melody, a recording), and what they and a recipe ask for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from musicldm.audio.reading import open_audio
from musicldm.cli.music import SETTING
from musicldm.generate.edit import file_sha256
from musicldm.generate.recipe import CONTEXT
from musicldm.generate.sketching import Parts, gather, whole_bars
from musicldm.scores.sketches import RHYTHMS, Sketch


def add_sketch(parser: argparse.ArgumentParser) -> None:
    """``--midi``, ``--chords``, ``--melody`` and what belongs to them."""
    parser.add_argument(
        "--midi",
        type=Path,
        metavar="FILE",
        help="follow the notes of this MIDI file, to its end; this and the options up to --context-guidance need a "
        "model that takes them (see `musicldm info MODEL`), and those that are given together sound together",
    )
    parser.add_argument(
        "--tracks",
        type=numbers,
        metavar="N,N",
        help="of --midi: only these, counted from 1 among the tracks that have notes (of a file of one track: its "
        "channels)",
    )
    parser.add_argument(
        "--chords",
        metavar="CHORDS",
        help="follow these chords, a bar each, as in 'Am F C G'; with bar lines those of a bar share it, as in "
        "'| Am F | C/E | F#m7b5 | N.C. |'",
    )
    parser.add_argument("--rhythm", choices=RHYTHMS, help="of --chords: held, one note at a time, or struck (block)")
    parser.add_argument("--melody", type=Path, metavar="AUDIO", help="follow the notes hummed or whistled in this file")
    parser.add_argument(
        "--context-guidance",
        type=weight,
        metavar="SCALE",
        help="how strongly to follow all this; 0 is not at all, above 1 takes half as long again (default: 1)",
        **SETTING,
    )


def add_along(parser: argparse.ArgumentParser) -> None:
    """``--along``."""
    parser.add_argument(
        "--along",
        metavar="AUDIO",
        help="make music that goes with this recording, and is as long as it is; the prompt says what is added",
        **SETTING,
    )


def add_meter(parser: argparse.ArgumentParser, what: str) -> None:
    """``--meter``, of ``what``."""
    parser.add_argument(
        "--meter",
        metavar="N/D",
        help=f"{what}: beats in a bar, and the note that is a beat, which --bpm counts: in 6/8 at 120 BPM an eighth "
        "lasts half a second and a bar three (default: 4/4)",
        **SETTING,
    )


def numbers(text: str) -> tuple[int, ...]:
    """An argparse type: ``1,3`` as numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"whole numbers with commas are needed, such as 1,3, got {text!r}")
    return tuple(int(part) for part in parts)


def weight(text: str) -> float:
    """An argparse type: a finite number from 0 up."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"a number of at least 0 is needed, got {text!r}")
    return value


def read_sketch(args: argparse.Namespace, bpm: float | None, meter: str | None) -> Sketch | None:
    """The sketch of the options; None without any. Errors of `musicldm.generate.sketching.gather`."""
    return gather(Parts(args.midi, args.tracks, args.chords, args.rhythm, args.melody), bpm, meter)


def context_settings(args: argparse.Namespace, chosen: Iterable[str], recipe: dict, settings: dict) -> dict:
    """``settings`` for `Request` with what music follows: what is given, else what ``recipe`` says.

    ``settings`` have the tempo; ``chosen`` are the names of those that were given. What is new says how long the music
    is, and that a candidate is chosen anew.
    """
    own: dict[str, Any] = {name: recipe[name] for name in CONTEXT if recipe.get(name) is not None}
    sketch = read_sketch(args, settings.get("bpm", getattr(args, "bpm", None)), getattr(args, "meter", None))
    new: dict[str, Any] = {} if sketch is None else {"context": sketch}
    if hasattr(args, "along"):
        with open_audio(args.along):  # what is wrong with it is said before a model is opened
            pass
        if file_sha256(args.along) == own.get("along_sha256"):
            own["along"] = args.along  # it was only moved
        else:
            new |= {"along": args.along, "along_sha256": None}
    lengths = {"seconds": None} if new and "seconds" not in chosen else {}
    if hasattr(args, "context_guidance"):
        new["context_guidance"] = args.context_guidance
    settings = settings | own | new | lengths
    if new:
        settings.pop("take", None)
    if args.chords is not None and settings.get("bpm") is None:
        settings.pop("meter", None)  # it is that of the chords
    return settings


def bars_of(settings: dict, usual: int) -> int:
    """Bars that hold the sketch of ``settings``, which have a tempo; ``usual`` without one."""
    sketch = settings.get("context")
    if not isinstance(sketch, Sketch):
        return usual
    return whole_bars(sketch, settings["bpm"], settings.get("meter"))
