"""``musicldm convert``: a checkpoint in its authors' layout, or a model folder, to a model folder.

A file of some parts only, such as LAION's CLAP, becomes a folder of these, from which they can be trained on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from musicldm.audio.output import output_folder
from musicldm.cli.common import load_quietly, report
from musicldm.generate.environment import DTYPES, choose_dtype


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CKPT",
        type=Path,
        help="the authors' file (.ckpt, .pt or .safetensors), or a model folder",
    )
    parser.add_argument(
        "--config", type=Path, metavar="YAML", help="the authors' configuration (default: the released one)"
    )
    parser.add_argument("--vocoder-config", type=Path, metavar="JSON", help="HiFi-GAN's (default: the released one)")
    parser.add_argument(
        "--clap-config", type=Path, metavar="JSON", help="LAION's model JSON (default: the released one)"
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="CLAP's tokenizer: a folder, or a hub name such as roberta-base"
    )
    parser.add_argument(
        "--raw-weights", action="store_true", help="not the averaged weights of the UNet, which are better"
    )
    parser.add_argument("--dtype", choices=DTYPES[1:], default="float32", help="number format of the new folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new model folder")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> None:
    """Write the folder, and warn of what it lacks."""
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise FileExistsError(f"{args.out} exists already; give a new folder with --out")
    from_folder = args.checkpoint.is_dir()
    configs = (args.config, args.vocoder_config, args.clap_config)
    if from_folder and any(path is not None for path in (*configs, args.tokenizer)):
        raise ValueError(f"{args.checkpoint} is a model folder with configurations of its own; leave the others out")
    for path in configs if from_folder else (args.checkpoint, *configs):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
    with output_folder(args.out.absolute().parent):
        from musicldm.models.original import OriginalCheckpoint
        from musicldm.pipelines.convert import convert

        load_quietly()
        source = args.checkpoint
        if not from_folder:
            source = OriginalCheckpoint(source, *configs, use_ema=not args.raw_weights)
        made = convert(source, args.out, args.tokenizer, choose_dtype(args.dtype))
    if made.missing:
        print(
            f"musicldm: warning: {args.checkpoint.name} has no {', '.join(made.missing)}; "
            "what it has is no model by itself, but can be trained on with init=FOLDER",
            file=sys.stderr,
        )
    if made.lacks_tokenizer:
        print(
            "musicldm: warning: without a tokenizer the model takes no prompts, only embeddings; "
            "give --tokenizer roberta-base for the released model",
            file=sys.stderr,
        )
    report(args.json, {"folder": str(args.out), "parts": made.parts}, f"{args.out} ({', '.join(made.parts)})")
