"""``musicldm mixup``: two recordings as one training mixture, heard and seen."""

from __future__ import annotations

import argparse
from pathlib import Path

from augment.pairing import MODES
from musicldm.audio import FORMATS, write_audio
from musicldm.audio.output import free_name, output_folder
from musicldm.cli.beats import add_tracker
from musicldm.cli.common import positive, report, seed_type


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description += (
        " The parts start on a downbeat, at one tempo and one loudness (mode synchronous), and lambda is the share of"
        " A. A picture beside the audio shows both, with beats and bars, before and after."
    )
    parser.add_argument("a", type=Path, metavar="A", help="a recording: WAV, FLAC, Ogg, MP3, ...")
    parser.add_argument("b", type=Path, metavar="B", help="another")
    parser.add_argument(
        "--out", type=Path, default=Path("mix.wav"), metavar="FILE", help="a WAV or FLAC file; numbered if it is there"
    )
    parser.add_argument("--mode", choices=MODES, default="synchronous", help="or as MusicLDM's authors do it")
    parser.add_argument("--lam", type=float, metavar="SHARE", help="of A, 0 to 1 (default: drawn from Beta(5, 5))")
    parser.add_argument("--seconds", type=positive(float), default=10.24, help="length of the mixture")
    parser.add_argument("--seed", type=seed_type, default=0, help="of lambda and of the downbeats")
    add_tracker(parser)
    parser.add_argument("--no-figure", action="store_true", help="no picture beside the audio")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> None:
    """Write the mixture and its picture, and say what was mixed."""
    if args.out.suffix[1:].lower() not in FORMATS:
        raise ValueError(f"cannot write {args.out}: the name must end in .wav or .flac")
    from musicldm.data.mixup import mix_files
    from musicldm.data.mixup_figure import save_mixup_figure

    with output_folder(args.out.parent):
        pair = mix_files(args.a, args.b, args.seconds, args.mode, args.lam, args.seed, args.tracker)
        mixture, fit = pair.mixture, pair.mixture.alignment
        record = {
            "a": args.a.name,
            "b": args.b.name,
            "mode": args.mode,
            "lam": round(mixture.lam, 4),
            "a_start_s": round(fit.a_start_s + mixture.crop_s, 4),
            "b_start_s": round(fit.b_start_s + mixture.crop_s * fit.speed, 4),
            "speed": round(fit.speed, 4),
            "tempo_bpm": [round(recording.tempo_bpm, 2) for recording in pair.recordings],
            "seed": args.seed,
            "tracker": args.tracker,
        }
        stem = free_name(args.out.parent, args.out.stem, (args.out.suffix, ".png"))
        audio, figure = (stem.with_name(stem.name + suffix) for suffix in (args.out.suffix, ".png"))
        write_audio(audio, mixture.waveform, pair.sample_rate, {"generated_by": "musicldm mixup", **record})
        figure = None if args.no_figure else figure
        if figure:
            save_mixup_figure(figure, pair, (args.a.name, args.b.name))
    speed = "" if fit.speed == 1 else f" played {fit.speed:.3f} times as fast"
    report(
        args.json,
        {"audio": str(audio), "figure": figure and str(figure), **record},
        f"{audio}: {mixture.lam:.2f} of {args.a.name} from {record['a_start_s']:.2f} s and {1 - mixture.lam:.2f} of "
        f"{args.b.name} from {record['b_start_s']:.2f} s{speed}",
    )
