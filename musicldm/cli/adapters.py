"""``--lora`` and ``--concept``: what a command adds to a model, several at once, each with a weight."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

USAGE = "FOLDER[:WEIGHT]"


def add_adapter_arguments(parser: argparse.ArgumentParser, **setting) -> None:
    """The two options; each may be given several times. ``setting`` goes to argparse."""
    parser.add_argument(
        "--lora",
        action="append",
        metavar=USAGE,
        help="add this adapter to the UNet, with a weight (default: 1); give it again for another one",
        **setting,
    )
    parser.add_argument(
        "--concept",
        action="append",
        metavar=USAGE,
        help='teach the model this concept, whose name, such as "<mine>", prompts may then use; likewise',
        **setting,
    )


def folder_and_weight(text: str) -> tuple[str, float]:
    """``FOLDER:0.5`` as a path and a weight, which is 1 where none is written.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    path, _, weight = text.rpartition(":")
    try:
        found = (text, 1.0) if not path or Path(text).exists() else (path, float(weight))
    except ValueError:
        found = (text, 1.0)
    if not Path(found[0]).is_dir():
        raise FileNotFoundError(
            f"there is no adapter at {found[0]}; write {USAGE}, with the final/ folder of its training"
        )
    return found


def load_adapters(pipeline, loras: list[str] | None, concepts: list[str] | None) -> dict[str, str]:
    """Add adapters and concepts, each ``FOLDER[:WEIGHT]``, to a pipeline; returns the revision of each folder.

    Raises:
        OSError: there is none.
        ValueError: it does not fit the model, or a concept's name is taken.
    """
    if not (loras or concepts):
        return {}
    from musicldm.generate.environment import model_revision
    from musicldm.models.concepts import load_concept

    wanted = [(*folder_and_weight(text), kind) for kind, texts in enumerate((loras, concepts)) for text in texts or ()]
    names = []
    for number, (path, _, is_concept) in enumerate(wanted):
        if is_concept:
            names.append(load_concept(pipeline, path).strip("<>"))
        else:
            names.append(f"lora-{number}")
            pipeline.load_lora_weights(path, adapter_name=names[-1])
    pipeline.set_adapters(names, [weight for _, weight, _ in wanted])
    return {path: model_revision(path) for path, _, _ in wanted}


def warn_of_changes(before: dict[str, str] | None, now: dict[str, str]) -> None:
    """Say which adapters are no longer those that a recipe was made with."""
    for path, revision in (before or {}).items():
        if now.get(path, revision) != revision:
            print(
                f"musicldm: warning: the recipe was made with revision {revision} of {path}, this is {now[path]}: "
                "the music will differ",
                file=sys.stderr,
            )
