"""Adapters and concepts by folder: what a request adds to a model, several at once, each with a weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from musicldm.config.values import check_number
from musicldm.generate.environment import model_revision
from musicldm.models.adapters import load_concept


def folder_and_weight(text: str) -> tuple[str, float]:
    """``FOLDER:0.5`` as a path and a weight, which is 1 where none is written.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the weight is NaN or infinity.
    """
    path, _, weight = text.rpartition(":")
    try:
        found = (text, 1.0) if not path or Path(text).exists() else (path, float(weight))
    except ValueError:
        found = (text, 1.0)
    if not Path(found[0]).is_dir():
        raise FileNotFoundError(
            f"there is no adapter at {found[0]}; write FOLDER[:WEIGHT], with the final/ folder of its training"
        )
    check_number(f"the weight in {text}", found[1])
    return found


def load_adapters(pipeline, loras: Sequence[str] | None, concepts: Sequence[str] | None) -> dict[str, str]:
    """Add adapters and concepts, each ``FOLDER[:WEIGHT]``, to a pipeline; returns the revision of each folder.

    Raises:
        OSError: there is none.
        ValueError: it does not fit the model, or a concept's name is taken.
    """
    wanted = [(*folder_and_weight(text), kind) for kind, texts in enumerate((loras, concepts)) for text in texts or ()]
    names = []
    for number, (path, _, is_concept) in enumerate(wanted):
        if is_concept:
            names.append(load_concept(pipeline, path).strip("<>"))
        else:
            names.append(f"lora-{number}")
            pipeline.load_lora_weights(path, adapter_name=names[-1])
    if names:
        pipeline.set_adapters(names, [weight for _, weight, _ in wanted])
    return {path: model_revision(path) for path, _, _ in wanted}
