"""``musicldm info``: the recipe of a file, what a model can, or what is installed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from musicldm.audio import read_recipe
from musicldm.audio.marks import read_mark
from musicldm.cli.common import each, refuse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="*",
        metavar="AUDIO_OR_MODEL",
        help="files that musicldm wrote, bundled models (such as mini) or folders of models",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for each file, or one, on stdout")
    parser.set_defaults(several="files")


def run(args: argparse.Namespace) -> None:
    """Print recipes, what models can, or the environment."""
    if args.files:
        _, bad = each(args.files, lambda name: show(described(name), args.json))
        refuse(bad, len(args.files))
    else:
        from musicldm.generate.environment import environment

        show(environment(), args.json)


def described(name: str) -> dict:
    """What is known of the audio file or the model ``name``; a file wins over a bundled model of that name.

    The mark of AI and the recipe of a file; other people's files may have the mark alone.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no audio, or has neither.
    """
    path = Path(name)
    if path.is_dir() or not path.exists():
        from musicldm.generate.environment import describe_model
        from musicldm.models.loading import bundled_models

        bundled = bundled_models()
        if path.is_dir() or name in bundled:
            return describe_model(name, bundled.get(name, path))
    mark = read_mark(path)
    try:
        recipe = read_recipe(path)
    except ValueError:
        if mark is None:
            raise
        recipe = {}
    marked = {} if mark is None else {"digital_source_type": mark}
    return {"file": str(path)} | marked | recipe


def show(record: dict, as_json: bool) -> None:
    """``record`` as one line of JSON, or as lines of names and values."""
    if as_json:
        print(json.dumps(record))
        return
    if isinstance(record.get("context"), str):
        record = record | {"context": in_words(record["context"])}
    width = max(len(name) for name in record) + 2
    for name, value in record.items():
        rows = (
            [f"{key} {'not installed' if v is None else v}" for key, v in value.items()]
            if isinstance(value, dict)
            else value
        )
        rows = rows if isinstance(rows, list) else ["-" if rows is None or rows == "" else str(rows)]
        for label, row in zip([name] + [""] * len(rows), rows or ["none"], strict=False):
            print(f"{label:<{width}}{row}")


def in_words(context: str) -> str:
    """What a recipe's sketch, as text, has in it."""
    from musicldm.scores.packing import unpack

    try:
        sketch = unpack(context)
    except ValueError:
        return context
    return f"a sketch of {len(sketch.notes)} notes and {len(sketch.clicks)} clicks, {sketch.seconds:g} s"
