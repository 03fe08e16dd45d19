"""Adds an evaluation to the card of its model: metrics.json -> the section "Evaluation" of README.md."""

from __future__ import annotations

import json
from pathlib import Path

from musicldm.evaluate.report import card_text
from musicldm.generate.environment import model_revision
from musicldm.pipelines.hub import CARD, front_matter, read_card, with_section


def read_metrics(path: Path) -> dict:
    """Contents of a metrics.json that `musicldm evaluate` wrote.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not such a file.
    """
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        made["metrics"], made["single"], made["prompts"], made["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a metrics.json of `musicldm evaluate` ({error!r})") from error
    return made


def write_card(folder: Path, metrics: Path) -> Path:
    """Put the measures in the file ``metrics`` into the card of the model in ``folder``; returns the card's path.

    Raises:
        ValueError: if there is no such folder, or the measures are of another model or another revision.
        OSError: if a file cannot be read or written.
    """
    made = read_metrics(metrics)
    if not folder.is_dir():
        raise ValueError(
            f"--card writes into a local model folder, and --model {folder} is not one; give the path of a folder"
        )
    settings = made["settings"]
    if settings["audio"] is not None or "adapters" in settings:
        what = "recordings" if settings["audio"] is not None else "a model with adapters"
        raise ValueError(
            f"{metrics} is an evaluation of {what}, not of the model {folder} alone; evaluate the model first"
        )
    if settings["revision"] != (revision := model_revision(folder)):
        raise ValueError(
            f"{metrics} is of a model of revision {settings['revision']}, {folder} has {revision}; evaluate it again"
        )
    card = read_card(folder) or f"{front_matter()}\n# MusicLDM\n"
    (folder / CARD).write_text(with_section(card, "Evaluation", card_text(made)), encoding="utf-8")
    return folder / CARD
