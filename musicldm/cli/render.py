"""``musicldm render``: scores to audio with captions."""

from __future__ import annotations

import argparse
import os
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import get_args, get_origin, get_type_hints

from musicldm.cli.common import mostly_failed, report

# What the options of RenderConfig mean; their names, types and defaults are its own.
HELP = {
    "backend": "fluidsynth, or tinysoundfont",
    "sample_rate": "of the clips, in Hz",
    "channels": "1 mono, 2 stereo",
    "clip_s": "seconds of a clip; none for whole pieces",
    "max_clips": "clips of one rendering, spread over the piece",
    "min_clip_s": "a piece with less music than a clip gives one shorter clip, but not shorter than this",
    "variants": "renderings of each score",
    "orchestrate": "original, instrument families, or all, joined by commas; one for each variant",
    "seed": "of everything that is drawn",
    "tempo_range": "factors between which the tempo is drawn",
    "transpose_range": "semitones between which the transposition is drawn",
    "velocity_range": "factors between which the loudness of the notes is drawn",
    "program_share": "how often a part gets another program of its kind, 0 to 1",
    "drumless_share": "how often a piece leaves its drums out, and is said to be without, 0 to 1",
    "peak_db_range": "decibels below full scale between which each clip's peak is drawn",
    "pan_share": "how often parts are placed anew between left and right, in a room of drawn width, 0 to 1",
    "loudness_range": "LUFS between which each clip's loudness is drawn, limited as records are, in place of its peak",
    "min_sound": "share of a clip in which something must sound",
    "max_silence_s": "longest silence inside a clip, in seconds",
    "validation_share": "share of the pieces that are held out",
    "captions": "alternative captions of each clip",
    "timeout_s": "seconds for one call of the synthesizer",
    "contexts": "beside each clip its notes as a MIDI file, from which training makes sketches and parts to play along",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from musicldm.scores.rendering import RenderConfig

    parser.add_argument("scores", nargs="+", type=Path, metavar="MIDI", help="MIDI files, or folders of them")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the audio folder; a stopped run continues"
    )
    parser.add_argument(
        "--soundfont",
        dest="soundfonts",
        action="append",
        metavar="SF2",
        help="a General MIDI SoundFont; several are drawn from (default: the system's)",
    )
    parser.add_argument(
        "--index", type=Path, metavar="CSV", help="facts about the scores by path: genre, tempo, key, ..."
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="scores rendered at once")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.epilog = (
        "Scores and rows of the index that cannot be used are listed in DIR/errors.jsonl, and the others rendered. "
        + parser.epilog
    )
    parser.set_defaults(several="scores")
    add_config_options(parser, RenderConfig, HELP, skip=("soundfonts",))


def add_config_options(parser: argparse.ArgumentParser, config: type, helps: dict[str, str], skip: tuple = ()) -> None:
    """An option for each field of the dataclass ``config``: ``--tempo-range LOW HIGH`` for ``tempo_range``."""
    hints = get_type_hints(config)
    for field in fields(config):
        if field.name in skip:
            continue
        assert field.default is not MISSING
        if (kind := hints[field.name]) is bool:
            parser.add_argument("--" + field.name.replace("_", "-"), action="store_true", help=helps[field.name])
            continue
        options = {}
        if optional := NoneType in get_args(kind):
            (kind,) = set(get_args(kind)) - {NoneType}
        if get_origin(kind) is tuple:
            kind = get_args(kind)[0]
            options = {"nargs": 2, "metavar": ("LOW", "HIGH")}
        elif optional:
            options = {"type": none_or(kind)}
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            **{"type": kind, "default": field.default, "help": helps[field.name]} | options,
        )


def none_or(kind: type):
    """An argparse type: ``none``, or a ``kind``."""

    def convert(text: str):
        return None if text == "none" else kind(text)

    convert.__name__ = f"{kind.__name__} or none"  # argparse puts it into its message
    return convert


def run(args: argparse.Namespace) -> int:
    """Render, and say what was made; the exit code is 1 if more than half of the scores could not be rendered."""
    from musicldm.scores.rendering import RenderConfig, render_scores

    given = {name: getattr(args, name) for name in HELP}
    ranges = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    config = RenderConfig(**given | ranges, soundfonts=tuple(args.soundfonts or ()))
    made = render_scores(args.scores, args.out, config, index=args.index, workers=args.workers, isolated=True)
    notes = f"; scores that had changed, rendered anew: {made.changed}" if made.changed else ""
    notes += f"; {made.failed} could not be rendered, see {args.out / 'errors.jsonl'}" if made.failed else ""
    report(
        args.json,
        {"folder": str(args.out), **made._asdict()},
        f"{args.out}: {made.written} clips, {made.audio_s / 60:.1f} min of music, from {made.scores} scores "
        f"in {made.seconds:.0f} s ({made.skipped} clips were there already{notes})",
    )
    return mostly_failed(made.failed, made.scores)
