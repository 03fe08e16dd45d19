"""``musicldm prepare``: a folder of recordings to training data."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from musicldm.cli.beats import add_tracker
from musicldm.cli.common import mostly_failed, positive, report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from musicldm.data.prepare.captions import CAPTIONS

    parser.description += (
        " Decodes, measures beats, tempo, metre, key and loudness, leaves copies out, and writes shards and an index"
        " that `musicldm train` takes as data=DIR."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="WAV, FLAC, MP3, Ogg, M4A, ...; searched through")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a run that was stopped continues")
    parser.add_argument(
        "--workers", type=positive(int), metavar="N", help="files at once (default: one for each processor)"
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="measure on a Ray cluster: HOST:PORT of its head, or auto for the one that runs here; all its machines "
        "must see FOLDER and DIR",
    )
    parser.add_argument(
        "--captions",
        choices=CAPTIONS,
        default="keep",
        help="keep those of metadata.jsonl, metadata.csv, NAME.txt or NAME.json and write the missing ones; "
        "tags: write all from tags and measurements",
    )
    parser.add_argument(
        "--caption-function",
        default="",
        metavar="MODULE:FUNCTION",
        help="gets a row of the index, and its path; returns captions",
    )
    parser.add_argument("--sample-rate", type=positive(int), default=16_000, metavar="HZ", help="of what is stored")
    parser.add_argument("--channels", type=int, choices=(1, 2), default=1, help="of what is stored: 1 mono, 2 stereo")
    add_tracker(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Prepare, and say what was made."""
    from musicldm.data.prepare import ERRORS_FILE, PrepareConfig, prepare

    config = PrepareConfig(args.sample_rate, args.tracker, args.captions, args.caption_function, channels=args.channels)
    workers = args.workers or (None if args.ray else os.cpu_count())
    made = prepare(args.folder, args.out, config, workers, args.ray)
    failed = f"; {made.failed} files cannot be used, see {args.out / ERRORS_FILE}" if made.failed else ""
    report(
        args.json,
        {"folder": str(args.out), **made._asdict()},
        f"{args.out}: {made.recordings} recordings, {made.audio_s / 60:.1f} min, {made.duplicates} copies left out"
        f"{failed}",
    )
    return mostly_failed(made.failed, made.recordings + made.duplicates + made.failed)
