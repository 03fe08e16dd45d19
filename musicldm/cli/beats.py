"""``musicldm beats``: where the beats of recordings are."""

from __future__ import annotations

import argparse
from pathlib import Path

from augment.beats import TRACKERS, beat_numbers, track_beats
from musicldm.audio import read_audio, write_whole
from musicldm.audio.output import free_name, output_folder
from musicldm.cli.common import each, refuse, report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description += (
        " Writes NAME.beats for each: a line for every beat, its seconds, a tab, and its number in the bar (1 is the"
        " downbeat, 0 unknown)."
    )
    parser.add_argument("recordings", nargs="+", type=Path, metavar="AUDIO", help="WAV, FLAC, Ogg, MP3, ...")
    add_tracker(parser)
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="folder for the results")
    parser.add_argument("--json", action="store_true", help="one JSON object for each file on stdout")
    parser.set_defaults(several="recordings")


def add_tracker(parser: argparse.ArgumentParser) -> None:
    """The option ``--tracker``."""
    parser.add_argument(
        "--tracker",
        choices=TRACKERS,
        default="madmom",
        help="madmom (its networks are not for commercial use), beat_this, or librosa (coarser)",
    )


def run(args: argparse.Namespace) -> None:
    """Track every recording, write its beats, and print its tempo and metre."""
    with output_folder(args.out):
        _, bad = each(args.recordings, lambda path: track_file(path, args))
    refuse(bad, len(args.recordings))


def track_file(path: Path, args: argparse.Namespace) -> None:
    """Write and print the beats of one recording."""
    waveform, rate = read_audio(path)
    try:
        beats = track_beats(waveform, rate, args.tracker)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    numbers = beat_numbers(beats)
    file = free_name(args.out, path.stem, (".beats",))
    file = file.with_name(f"{file.name}.beats")
    lines = [f"{time_s:.3f}\t{number}\n" for time_s, number in zip(beats.times_s, numbers, strict=True)]
    write_whole(file, "".join(lines).encode())
    record = {
        "file": str(path),
        "beats": str(file),
        "tracker": args.tracker,
        "tempo_bpm": round(beats.tempo_bpm, 3),
        "beats_per_bar": beats.beats_per_bar,
        "confidence": round(beats.confidence, 4),
        "times_s": [round(float(time_s), 4) for time_s in beats.times_s],
        "numbers": numbers.tolist(),
    }
    if not lines:
        text = f"{path}: no beats found, {file} is empty"
    else:
        metre = f"{beats.beats_per_bar} beats to the bar" if beats.beats_per_bar else "no bars found"
        text = f"{path}: {beats.tempo_bpm:.1f} BPM, {metre}, {len(lines)} beats, confidence {beats.confidence:.2f}"
    report(args.json, record, text)
