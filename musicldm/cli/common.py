"""What several commands need: checked argument types, shared options, lists of files, and results on stdout."""

from __future__ import annotations

import argparse
import gc
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from musicldm.audio.output import is_full
from musicldm.generate.recipe import HIGHEST_SEED

ADAPTER = "FOLDER[:WEIGHT]"


def positive(kind: type, most: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a finite ``kind`` (int or float) above 0, and not above ``most``."""

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (0 < value <= most and math.isfinite(value)):
            what = "a whole number" if kind is int else "a number"
            limit = "" if math.isinf(most) else f" and up to {most}"
            raise argparse.ArgumentTypeError(f"{what} above 0{limit} is needed, got {text!r}")
        return value

    return convert


def seed_type(text: str) -> int:
    """An argparse type: a whole number that torch takes as a seed."""
    if not (text.isascii() and text.isdecimal()) or int(text) > HIGHEST_SEED:
        raise argparse.ArgumentTypeError(f"a whole number from 0 to {HIGHEST_SEED} is needed, got {text!r}")
    return int(text)


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a number from 0 to 1 is needed, got {text!r}")
    return value


def add_adapter_arguments(parser: argparse.ArgumentParser, **setting) -> None:
    """``--lora`` and ``--concept``; each may be given several times. ``setting`` goes to argparse."""
    parser.add_argument(
        "--lora",
        action="append",
        metavar=ADAPTER,
        help="add this adapter to the UNet, with a weight (default: 1); give it again for another one",
        **setting,
    )
    parser.add_argument(
        "--concept",
        action="append",
        metavar=ADAPTER,
        help='teach the model this concept, whose name, such as "<mine>", prompts may then use; likewise',
        **setting,
    )


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Importing torch and diffusers makes a million objects that stay; looking through them takes a tenth of it."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def load_quietly() -> None:
    """Keep transformers from showing a progress bar for every part that it reads or writes."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def each(items: Sequence[Path], work: Callable[[Path], object]) -> tuple[list, list[str]]:
    """``work(item)`` of all that are good, and of the others what is wrong with them, for `refuse`.

    Raises:
        ValueError, OSError: those of ``work`` if there is only one item; a full disk, which no other item mends.
    """
    done, bad = [], []
    for item in items:
        try:
            done.append(work(item))
        except (ValueError, OSError) as error:
            if len(items) == 1 or is_full(error):
                raise
            message = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
            bad.append(message if str(item) in message else f"{item}: {message}")
    return done, bad


def mostly_failed(failed: int, total: int) -> int:
    """The exit code of a command that makes a collection: 1 if more than half of ``total`` items ``failed``, else 0."""
    return int(2 * failed > total)


def refuse(bad: list[str], total: int) -> None:
    """ValueError that names what was wrong with items of a list, if anything was."""
    if bad:
        raise ValueError(f"{len(bad)} of {total} could not be used: {'; '.join(bad)}")


def report(as_json: bool, record: dict, text: str) -> None:
    """One result on stdout: ``record`` as a line of JSON, or ``text``."""
    print(json.dumps(record) if as_json else text, flush=True)
