"""Tempo, chords, melody, notes and drums as they were asked, beside what the same judges hear in true renderings.

    python -m benchmarks.control --model mini --scores SCORES --index index.csv --pieces 100 \\
        --out benchmarks/results/control.json

SCORES is a folder of MIDI files with a table of facts; those that `mini` did not learn from are rendered once, with
their notes beside them, which are the truth. Judges are other people's software (`benchmarks.control.judges`). Columns:

    true         the true renderings
    round_trip   the same after the model's VAE and vocoder: the most that it can reach
    text         what the model makes of the text alone
    context      what it makes of the text and the sketch, where it takes one

Music and what is heard in it is kept in the folder ``--work``, in one folder for each model: a run that was stopped
goes on, and a model with another UNet needs no new renderings and round trips.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.control import along, following, text
from benchmarks.control.judges import check_installed
from benchmarks.control.pieces import prepare
from benchmarks.control.playing import Player
from benchmarks.control.published import PUBLISHED
from benchmarks.results import keep

KINDS = ("tempo", "chords", "melody", "notes", "drums", "along", "text", "quality")
PHRASES = 25  # of each family
FEWEST = 4  # cases


def measured(kind: str, study: following.Study, options: argparse.Namespace) -> dict:
    """The section of the report of one ``kind``."""
    if kind == "tempo":
        return following.tempo(study)
    if kind == "quality":
        return text.quality(study)
    if kind not in ("along", "text"):
        return following.followed(kind, study)
    probe = text.make_probe(options.index, options.scores, options.work)
    return along.measured(study, probe) if kind == "along" else text.followed(study, probe, options.phrases)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--scores", type=Path, required=True, help="folder of MIDI files")
    parser.add_argument("--index", type=Path, required=True, help="table of what is known of each score")
    parser.add_argument("--pieces", type=int, default=100, help="cases of each kind")
    parser.add_argument("--phrases", type=int, default=PHRASES, help="of each family of instruments")
    parser.add_argument("--context-guidance", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=Path("runs/control"), help="folder for what is made")
    parser.add_argument("--only", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.pieces < FEWEST:
        parser.error(f"--pieces must be at least {FEWEST}, for intervals; got {options.pieces}")
    try:
        check_installed()
    except ImportError as error:
        print(error, file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    player = Player(options.model, options.work)
    pieces = prepare(options.index, options.scores, options.work / "rendered")
    study = following.Study(pieces, player, options.work, options.pieces, options.context_guidance)
    about = {
        "model": options.model,
        "takes_context": player.takes_context,
        "context_guidance_scale": options.context_guidance,
        "pieces": options.pieces,
    }
    for kind in options.only:
        told = measured(kind, study, options)
        print(json.dumps({kind: told}, indent=1), flush=True)
        if options.out:
            keep(options.out, {"settings": about, kind: told, "published": PUBLISHED})
    return 0


if __name__ == "__main__":
    sys.exit(main())
