"""The card of what a run made: data, licences, recipe, numbers, in the words that a reader of ``final/`` needs.

configuration, clips, metadata, OUT/metrics.jsonl -> OUT/final/README.md
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from torch import nn

from musicldm.config import LOCAL, TrainConfig, differences, marked
from musicldm.data.clips import Clip
from musicldm.data.collection import Collection, as_collection
from musicldm.pipelines.hub import USE, front_matter, parts_table
from musicldm.train.data import data_section
from musicldm.train.log import METRICS_FILE

USE_LORA = """```python
from musicldm import MusicLDMPipeline

pipeline = MusicLDMPipeline.from_pretrained("{base}")
pipeline.load_lora_weights("FOLDER OR HUB NAME")
output = pipeline("a calm piece for solo piano", num_inference_steps=25, seed=1)
```
"""
USE_CONCEPT = """```python
from musicldm import MusicLDMPipeline
from musicldm.models.adapters import load_concept

pipeline = MusicLDMPipeline.from_pretrained("{base}")
load_concept(pipeline, "FOLDER")
output = pipeline("{name}, with strings", num_inference_steps=25, seed=1)
```
"""


def training_card(
    config: TrainConfig, clips: list[Clip], data: Path | Collection, out: Path, parts: dict[str, nn.Module]
) -> str:
    """The card of a run in ``out`` that trained on ``clips`` of the collection ``data`` and made ``parts``."""
    stage = type(config).__name__.removesuffix("Config")
    base = Path(config.init).name or "nothing"
    title, use, tags = f"MusicLDM: {stage}", "", ()
    if stage == "Concept":
        title, use = f"The concept {config.name}", USE_CONCEPT.format(base=base, name=config.name)
    elif stage == "Diffusion" and config.lora.rank:
        title, use, tags = "A MusicLDM adapter", USE_LORA.format(base=base), ("lora",)
    elif stage == "Diffusion":
        title, use = "MusicLDM", USE
    about_data = data_section(out, clips, as_collection(data))
    sections = [f"# {title}", use, parts_table(parts), f"## Data\n\n{about_data}", _recipe(config, base)]
    if numbers := _numbers(out / METRICS_FILE, config.export):
        sections.append(
            f"## Numbers\n\nOn clips held out of the training, at the {config.export} validation:\n\n{numbers}"
        )
    if stage == "Concept":
        sections[-1] = sections[-1].replace("clips held out of the training", "the clips that it was learned from")
    sections.append(
        "## Licence\n\nNone is chosen for these weights yet. The music that they were trained on has the licences "
        "above; whoever publishes the weights decides, and says so here."
    )
    return front_matter(*tags) + "\n" + "\n\n".join(section.strip() for section in sections if section) + "\n"


def _recipe(config: TrainConfig, base: str) -> str:
    """What differs from the published recipe; all of it is in ``training.yaml``."""
    local = marked(config, LOCAL)
    rows = [line.partition(": ") for line in differences(type(config)(), config)]
    rows = [(key, *change.split(" -> ", 1)) for key, _, change in rows if key not in local]
    table = "\n".join(f"| `{key}` | {here} | {usual} |" for key, usual, here in rows)
    start = f"## Recipe\n\nStarted from: {base}. `training.yaml` has every setting; those unlike the defaults:"
    return f"{start}\n\n| Setting | Here | Default |\n| --- | --- | --- |\n{table}" if rows else start


def _numbers(metrics: Path, export: str) -> str:
    """The validation of the weights that are exported, as a table: the last, or the best by its first number."""
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    rows = [row for row in map(json.loads, lines) if row.pop("group") == "validation"]
    if not rows:
        return ""
    row = _best(rows) if export == "best" else rows[-1]
    values = [f"| {name} | {value:.4g} |" for name, value in row.items() if name != "step"]
    return "\n".join([f"| Step {row['step']} | |", "| --- | --- |", *values])


def _best(rows: list[dict[str, float]]) -> dict[str, float]:
    """The row of the best step: its first number is the lowest. One of step 0 is from before the training."""

    def place(row: dict[str, float]) -> tuple[bool, float]:
        _, first, *_ = row.values()  # the step comes before
        return math.isnan(first), first

    return min((row for row in rows if row["step"]), key=place)
