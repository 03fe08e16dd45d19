"""``musicldm train``: one training stage on a folder of recordings."""

from __future__ import annotations

import argparse
from pathlib import Path

from musicldm.cli.common import report

STAGES = ("vae", "vocoder", "clap", "diffusion", "concept")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "musicldm train STAGE [--config FILE] data=FOLDER --out DIR [--resume] [key=value ...]\n"
        '       musicldm train concept FOLDER --name "<mine>" --out DIR [--resume] [key=value ...]'
    )
    parser.add_argument("stage", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="data=FOLDER (audio files and metadata.jsonl), and changes to the configuration such as steps=1000",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML, or original, mini, tiny or lora; what it leaves out is as published"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in the folder")
    parser.add_argument("--name", metavar="WORD", help='of a concept, such as "<mine>"')
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(several="overrides")


def run(args: argparse.Namespace) -> None:
    """Train, and print where the result is."""
    concept = args.stage == "concept"
    is_folder = [text.startswith("data=") or (concept and "=" not in text) for text in args.overrides]
    folders = [text.removeprefix("data=") for text, yes in zip(args.overrides, is_folder, strict=True) if yes]
    if len(folders) != 1 or not folders[0]:
        raise ValueError("training needs one folder of recordings, written data=FOLDER")
    overrides = [text for text, yes in zip(args.overrides, is_folder, strict=True) if not yes]
    if concept != (args.name is not None):
        raise ValueError('--name "<mine>" belongs to `train concept`, which needs it')
    overrides += [f"name={args.name}"] if concept else []

    from musicldm import train

    final = train.run(args.stage, args.config, folders[0], args.out, args.resume, overrides)
    report(args.json, {"stage": args.stage, "run": str(args.out), "final": str(final)}, str(final))
