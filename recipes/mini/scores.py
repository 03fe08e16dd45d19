"""The list of scores that a rendered collection was made from, with licences: what a model card must carry.

python -m recipes.mini.scores COLLECTION --index index.csv --out scores.csv
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from pathlib import Path

COLUMNS = ("path", "title", "composer", "licence", "repository", "piece_id", "split")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("collection", type=Path)
    parser.add_argument("--index", type=Path, required=True, help="CSV of facts by path, as given to musicldm render")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    clips = [json.loads(line) for line in (arguments.collection / "metadata.jsonl").read_text().splitlines()]
    counts, splits = Counter(clip["score"] for clip in clips), {clip["score"]: clip["split"] for clip in clips}
    with open(arguments.index, encoding="utf-8", newline="") as file:
        facts = {row["path"]: row for row in csv.DictReader(file)}
    with open(arguments.out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, "clips"])
        for score in sorted(counts):
            row = facts[score] | {"split": splits[score]}
            writer.writerow([*(row[name] for name in COLUMNS), counts[score]])
    print(f"{len(counts)} scores, {sum(counts.values())} clips, {sum(c['duration_s'] for c in clips) / 3600:.2f} hours")


if __name__ == "__main__":
    main()
