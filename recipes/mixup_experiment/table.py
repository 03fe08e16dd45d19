"""The results of `recipes.mixup_experiment.run` as a Markdown table and a picture.

python -m recipes.mixup_experiment.table --picture recipes/mixup_experiment/mixup_experiment.png
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from musicldm.audio import write_whole
from musicldm.evaluate.report import value_text

COLUMNS = {
    "frechet_distance_clap": "Fréchet distance, CLAP",
    "inception_score": "IS",
    "paired_kl_divergence": "KL",
    "text_audio_similarity": "text-audio similarity",
    "sim_aa_90": "SIM_AA@90",
    "sim_aa_95": "SIM_AA@95",
    "above_base_rate": "above the base rate",
    "copies": "copied passages",
}


def table(section: dict) -> str:
    """One row for each mode: means over the seeds, intervals, and an asterisk where chance does not explain it."""
    lines = [
        "| Mixup | " + " | ".join(COLUMNS.values()) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    for mode, row in section["modes"].items():
        cells = []
        for name in COLUMNS:
            if name not in row["together"]:
                cells.append("")
                continue
            mark = "*" if row.get("against_none", {}).get(name, {}).get("larger_than_chance") else ""
            value, interval = value_text(row["together"][name])
            cells.append(f"{value}{mark} ({interval})")
        lines.append(f"| `{mode}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(sections: dict[str, dict]) -> bytes:
    """A panel for each measure: modes side by side, a colour for each training set, whiskers for intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(COLUMNS) // 2).ravel()
    for axes, (name, title) in zip(panels, COLUMNS.items(), strict=True):
        for k, (label, section) in enumerate(sections.items()):
            modes = [mode for mode, row in section["modes"].items() if name in row["together"]]
            rows = [section["modes"][mode]["together"][name] for mode in modes]
            values = [row["value"] for row in rows]
            spread = [[row["value"] - row["low"] for row in rows], [row["high"] - row["value"] for row in rows]]
            places = [i + 0.2 * (k - (len(sections) - 1) / 2) for i in range(len(modes))]
            axes.errorbar(places, values, spread, fmt="o", capsize=3, color=("#3b528b", "#e08214")[k % 2], label=label)
            axes.set_xticks(range(len(modes)), modes)
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("recipes/mixup_experiment/results/experiment.json"))
    parser.add_argument("--picture", type=Path, help="PNG to write")
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    sections = {name.replace("_", " "): part for name, part in results.items() if name.endswith("_clips")}
    for name, section in sections.items():
        print(
            f"{name}, {section['settings']['steps']} steps of {section['settings']['batch_size']}\n\n{table(section)}"
        )
    if options.picture:
        write_whole(options.picture, picture(sections))


if __name__ == "__main__":
    main()
