"""What several commands need: checked argument types, shared options, the folder to write to, and results on stdout."""

from __future__ import annotations

import argparse
import gc
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Make ``path`` and see that files can be written there; folders made for nothing are removed again.

    Raises:
        OSError: if it is a file, or may not be written.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"the output folder {path} is a file; give another one with --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        _remove_empty(missing)
        raise OSError(
            f"cannot write to the output folder {path} ({error.strerror}); give another one with --out"
        ) from error
    try:
        yield path
    finally:
        _remove_empty(missing)


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of ``folders`` (inner first) that are empty."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def report(as_json: bool, record: dict, text: str) -> None:
    """One result on stdout: ``record`` as a line of JSON, or ``text``."""
    print(json.dumps(record) if as_json else text, flush=True)
