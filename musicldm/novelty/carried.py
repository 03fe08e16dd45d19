"""The novelty index of a model's training set, stored in the model folder as ``novelty_index/``."""

from __future__ import annotations

from pathlib import Path

from musicldm.models.loading import read_json
from musicldm.pipelines.hub import NOVELTY_INDEX, PublishMixin

MEASURES = {  # of an index's base rate
    "similarity": "similarity (cosine) to the nearest clip",
    "window_similarity": "the same of windows of 2 s",
    "score": "agreement of the best passage",
}


def index_of(pipeline: PublishMixin) -> Path | None:
    """The folder of the index in the model of ``pipeline``, downloaded if the model came from a hub; or None.

    Raises:
        OSError: if the hub refuses the download.
    """
    return pipeline.companion(NOVELTY_INDEX)


def attach_index(pipeline: PublishMixin, folder: str | Path) -> None:
    """Store the index in ``folder`` with the model whenever it is saved, and describe it in the model card.

    Raises:
        OSError: if there is none.
        ValueError: if its ``index.json`` is damaged.
    """
    folder = Path(folder)
    pipeline.card_sections["Novelty"] = index_text(folder)
    pipeline.companions[NOVELTY_INDEX] = folder


def index_text(index: Path) -> str:
    """Text for a model card about the novelty index in the folder ``index``: its size, CLAP and base rate."""
    about = read_json(index / "index.json")
    base_rate = about["base_rate"]
    text = (
        f"`{NOVELTY_INDEX}/` holds {about['clips']} clips of {about['recordings']} recordings, embedded by its "
        f"CLAP (`{about['embedder']}`). `musicldm generate --novelty avoid` and `musicldm novelty check` judge by how "
        f"near {base_rate['clips']} of the clips come to pieces other than their own:"
    )
    rows = ["| | half exceed | 5 % exceed | 1 % exceed |", "| --- | ---: | ---: | ---: |"]
    for name, meaning in MEASURES.items():
        values = [base_rate.get(f"{name}_{percent}") for percent in (50, 95, 99)]
        if None not in values:
            rows.append(f"| {meaning} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return f"{text}\n\n" + "\n".join(rows)
