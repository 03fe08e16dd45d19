"""Render the music that `mini` learns from and is judged by, split by piece.

    python -m recipes.mini.data SCORES --index index.csv --out data

makes three audio folders of which no two share a piece: ``train`` (what the model hears), ``probe`` (solo renderings
that teach an instrument-family probe) and ``held`` (the evaluation set). With each clip of the first and the last lie
its notes, from which contexts are made. It continues where it was stopped; ``--only train`` makes one folder alone.
"""

import argparse
import csv
import hashlib
from dataclasses import replace
from pathlib import Path

from musicldm.scores.rendering import RenderConfig, render_scores

FOLDER = Path("/usr/share/sounds/sf2")  # of Debian's packages, which README.md names
SOUNDFONTS = (f"{FOLDER}/FluidR3_GM.sf2", f"{FOLDER}/TimGM6mb.sf2")
TO_LEARN = (*SOUNDFONTS, f"{FOLDER}/MuseScore_General_Full.sf2")
FAMILIES = ("piano", "guitar", "strings", "brass", "winds", "organ", "synth", "drums")
LEFT_OUT = ("pop909",)  # recent songs that belong to others
SHARES = {"held": 0.15, "probe": 0.10}  # of the pieces; the rest is for training
COMMON = {"captions": 6, "timeout_s": 60.0}
ALL = "original,all"  # orchestrations, in turn
FOLDERS = {
    "train": RenderConfig(
        **COMMON, soundfonts=TO_LEARN, max_clips=2, variants=10, orchestrate=ALL, drumless_share=0.33, contexts=True
    ),
    "probe": RenderConfig(
        **COMMON, soundfonts=SOUNDFONTS, max_clips=2, variants=5, orchestrate=",".join(FAMILIES), seed=1
    ),
    "held": RenderConfig(
        **COMMON, soundfonts=SOUNDFONTS, max_clips=1, variants=3, orchestrate=ALL, seed=2, contexts=True
    ),
}


def place_of(piece_id: str, purpose: str) -> float:
    """A number from 0 to 1 for all versions of a piece, whatever else is rendered."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {piece_id}".encode()).digest()[:8], "big") / 2**64


def folder_of(piece_id: str) -> str:
    """Which folder all versions of a piece belong to."""
    place = place_of(piece_id, "mini")
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return "train"


def render_folders(described: str, folders: dict[str, RenderConfig], out: Path) -> None:
    """The command: render each of ``folders`` from the pieces that belong to it."""
    parser = argparse.ArgumentParser(description=described.splitlines()[0])
    parser.add_argument("scores", type=Path, help="folder of MIDI files")
    parser.add_argument("--index", type=Path, required=True, help="table of what is known of each score")
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the pieces, to begin with; a run with more goes on from there"
    )
    parser.add_argument("--only", choices=sorted(folders), help="the one folder to render")
    parser.add_argument("--variants", type=int, help="renderings of each score, in place of the usual number")
    options = parser.parse_args()
    scores: dict[str, list[Path]] = {name: [] for name in (*SHARES, "train")}
    with options.index.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["source"] not in LEFT_OUT and place_of(row["piece_id"], "share") <= options.share:
                scores[folder_of(row["piece_id"])].append(options.scores / row["path"])
    for name, config in folders.items():
        if options.only not in (None, name):
            continue
        if options.variants:
            config = replace(config, variants=options.variants)
        report = render_scores(scores[name], options.out / name, config, index=options.index, workers=options.workers)
        print(f"{name}: {report.scores} scores, {report.written + report.skipped} clips, {report.failed} failed")


if __name__ == "__main__":
    render_folders(__doc__, FOLDERS, Path("data"))
