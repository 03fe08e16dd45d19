"""``musicldm edit``: recordings in, the same recordings with a part of them made anew out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicldm.audio.output import free_name, output_folder
from musicldm.audio.reading import open_audio
from musicldm.cli.common import each, load_quietly, no_garbage_collection, positive, refuse, report, share
from musicldm.cli.music import add_comparison, add_output, add_settings, given, progress_bars
from musicldm.cli.sketch import add_meter, add_sketch, read_sketch
from musicldm.config.values import shown
from musicldm.editing.regions import Region, parse_region
from musicldm.editing.writing import SUFFIXES
from musicldm.generate.edit import (
    AMOUNTS,
    KINDS,
    SNAPS,
    Edit,
    load_edit_recipe,
    load_music_recipe,
    retake_of,
)
from musicldm.generate.metre import METER, check_bpm
from musicldm.generate.preparing import prepare
from musicldm.generate.recipe import OPENING, warn_of_changes
from musicldm.novelty import CopyError
from musicldm.scores.sketches import Sketch

if TYPE_CHECKING:
    from musicldm.generate.pieces import EditedPiece

FORMATS = tuple(name.lower() for name in SUFFIXES if name != "WAVEX")
# By which a file is told from a prompt where there is no such file.
AUDIO = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes} | {
    *(".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".wma", ".raw")
}
USAGE = f"""musicldm edit {"|".join(KINDS)} AUDIO [AUDIO ...] ["PROMPT"] [OPTIONS]
       musicldm edit --from RESULT AUDIO [OPTIONS]"""
ABOUT = """
vary makes all of a recording anew, near what it was (--amount). inpaint makes regions anew (--region). extend adds
time before and after it (--before, --after). retake makes the music of a file of `musicldm generate` again, with its
noise turned towards that of another seed (--amount). What inpaint and extend keep comes back bit for bit, in the
recording's own rate, channels and sample format. The recording itself is never written to. Without a prompt that of
the recording's own recipe is taken. With a model that takes them, all but retake follow chords, notes or a melody
(--chords, --midi, --melody), whose time begins at the first new sample and goes on in that of the recording. Words
behind the first AUDIO that are no files are the prompt.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = USAGE
    parser.description += " ".join(ABOUT.split("\n"))
    parser.add_argument("words", nargs="*", metavar="KIND AUDIO PROMPT", help="what to do, with which files, and how")
    parser.add_argument(
        "--from",
        dest="recipe",
        type=Path,
        metavar="RESULT",
        help="make the music of this edited file again from its recording; options given beside it change it",
    )
    parser.add_argument(
        "--region",
        type=region_type,
        action="append",
        metavar="START:STOP",
        help="of inpaint: seconds to make anew, such as 4:6.5, :4 (from the beginning) or 10: (to the end); give it "
        "again for another one",
    )
    parser.add_argument(
        "--snap",
        choices=SNAPS,
        help="of inpaint: move the borders of regions inwards to a beat within 60 ms, or leave them (default: beat "
        "where madmom is installed)",
    )
    for name, where in (("before", "before the beginning"), ("after", "after the end")):
        parser.add_argument(f"--{name}", type=positive(float), metavar="SECONDS", help=f"of extend: to add {where}")
    parser.add_argument(
        "--amount",
        type=share,
        help="0 to 1: of vary how much noise it starts from, 1 being all new (default: "
        f"{AMOUNTS['vary']}); of retake how far the noise is turned, 0 giving the same music and 1 that of the other "
        f"seed (default: {AMOUNTS['retake']})",
    )
    add_sketch(parser)
    parser.add_argument(
        "--bpm", type=float, metavar="BPM", help="of --chords; without other notes a click on each beat is followed"
    )
    add_meter(parser, "of --bpm and --chords")
    add_settings(parser)
    add_comparison(parser)
    add_output(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="of the result (default: that of the recording; WAV for MP3, Ogg and AAC, which lose something each time)",
    )
    parser.set_defaults(several="words")


def region_type(text: str) -> Region:
    """An argparse type: `parse_region` with its own words."""
    try:
        return parse_region(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(args: argparse.Namespace) -> None:
    """Write an audio file and a picture for each recording."""
    if args.recipe is None:
        kind, sources, prompt = read_words(args.words)
        ask = partial(new_edit, args, kind, prompt)
        if kind != "retake":
            ask(sources[0])  # what is wrong for all of them is said once
    else:
        sources, ask = read_source(args.words), partial(same_edit, args)
    workshop = Workshop(args, len(sources))
    with output_folder(args.out):
        _, bad = each(sources, lambda path: workshop.edit(path, ask))
    refuse(bad + (workshop.copies if bad else []), len(sources))
    if workshop.copies:
        raise CopyError("; ".join(workshop.copies))


def read_words(words: list[str]) -> tuple[str, list[Path], str | None]:
    """The kind of edit, the recordings and the prompt, which may be missing, of the words of a call.

    Raises:
        ValueError: for an unknown kind, no recording, or several prompts.
    """
    if not words or words[0] not in KINDS:
        got = f"got {shown(words[0])}" if words else "got nothing"
        raise ValueError(f"say what to do, {', '.join(KINDS)}, and with which recording; {got}")
    kind, *rest = words
    if not rest or not rest[0].strip():
        raise ValueError(f"there is no recording to {kind}; give an audio file, then a prompt in quotes")
    sources, prompts = [Path(rest[0])], []
    for word in rest[1:]:
        if os.path.isfile(word) or Path(word).suffix.lower() in AUDIO:
            sources.append(Path(word))
        else:
            prompts.append(word)
    if len(prompts) > 1:
        raise ValueError(
            f"an edit has one prompt, got {len(prompts)} ({', '.join(map(shown, prompts))}); put one in quotes, and "
            "call again for the others"
        )
    return kind, sources, prompts[0] if prompts else None


def read_source(words: list[str]) -> list[Path]:
    """The recording of a call with --from.

    Raises:
        ValueError: unless there is exactly one.
    """
    if len(words) != 1:
        raise ValueError(
            f"--from RESULT needs the recording that was edited, and nothing else; got {', '.join(words) or 'nothing'}"
        )
    return [Path(words[0])]


def asked(args: argparse.Namespace, source: Path) -> dict:
    """What an edit of ``source`` is asked for on the command line, as far as it was given."""
    values = {"regions_s": args.region, "before_s": args.before, "after_s": args.after, "amount": args.amount}
    values |= {"snap": args.snap, "context": sketch_of(args, source)}
    values |= {"context_guidance": getattr(args, "context_guidance", None)}
    return {name: value for name, value in values.items() if value is not None}


def sketch_of(args: argparse.Namespace, source: Path) -> Sketch | None:
    """What is followed in ``source``: the sketch of the options, or the click of a tempo; None without any.

    Raises:
        OSError, ValueError: those of `read_sketch`, and for a metre without a tempo or chords.
    """
    meter = getattr(args, "meter", None)
    if meter is not None and args.bpm is None and args.chords is None:
        raise ValueError("--meter is for --bpm and --chords; give one of them, or leave --meter out")
    sketch = read_sketch(args, args.bpm, meter)
    if sketch is not None or args.bpm is None:
        return sketch
    check_bpm(args.bpm)
    with open_audio(source) as audio:
        seconds = audio.duration_s + (args.before or 0) + (args.after or 0)
    return Sketch.click(args.bpm, METER if meter is None else meter, seconds=seconds)


def new_edit(args: argparse.Namespace, kind: str, prompt: str | None, source: Path) -> tuple[Edit, dict, dict]:
    """The edit of ``source``, how its model is opened, and the recipe that says so, which is empty without one."""
    chosen = given(args)
    recipe = load_music_recipe(source, chosen) if kind == "retake" else {}
    opening = opened(chosen, recipe)
    chosen |= asked(args, source) | ({} if prompt is None else {"prompt": prompt})
    return (retake_of(recipe, source, chosen) if recipe else Edit(kind, str(source), **chosen)), opening, recipe


def same_edit(args: argparse.Namespace, source: Path) -> tuple[Edit, dict, dict]:
    """The edit that made the file of --from, how its model is opened, and its recipe."""
    chosen = given(args)
    recipe = load_edit_recipe(args.recipe, chosen)
    opening = opened(chosen, recipe)
    return Edit.from_recipe(recipe, source, **chosen, **asked(args, source)), opening, recipe


def opened(chosen: dict, recipe: dict) -> dict:
    """How a model is opened, taken out of what was ``chosen``, else by ``recipe``."""
    return {name: chosen.pop(name, recipe.get(name, default)) for name, default in OPENING.items()}


class Workshop:
    """Edits recordings one after another, with a model that is opened when the first of them can be edited.

    Attributes:
        copies: what the guard against copies refused, a line for each recording.
    """

    def __init__(self, args: argparse.Namespace, total: int):
        self.args, self.total, self.begun = args, total, 0
        self.copies: list[str] = []
        self._sessions: dict[tuple, Any] = {}

    def edit(self, path: Path, ask: Callable[[Path], tuple[Edit, dict, dict]]) -> None:
        """Write what is made of ``path``; the errors of `Session.run`, except that copies are only noted."""
        self.begun += 1
        edit, opening, recipe = ask(path)
        prepare(edit)
        session = self._session(opening)
        warn_of_changes(recipe, session.about(edit))
        try:
            piece = session.run(edit, progress=self._progress())
        except CopyError as error:
            self.copies.append(f"{path}: {error}")
            return
        write(self.args, path, piece)

    def _session(self, opening: dict):
        key = tuple(opening.values())
        if key not in self._sessions:
            with no_garbage_collection():
                from musicldm.generate.session import Session
            load_quietly()
            self._sessions = {key: Session(device=self.args.device, **opening)}
        return self._sessions[key]

    def _progress(self) -> Callable:
        show, i = progress_bars(), self.begun
        return lambda progress: show(progress._replace(first=i, last=i, total=self.total))


def write(args: argparse.Namespace, source: Path, piece: EditedPiece) -> None:
    """One result: audio, picture, and a line on stdout."""
    container = args.format or (args.recipe and container_of(args.recipe))
    form = piece.form(container)
    stem = free_name(args.out, source.stem, (form.suffix, source.suffix, *AUDIO, ".png", ".mid"))
    audio, figure = stem.with_name(f"{stem.name}{form.suffix}"), stem.with_name(f"{stem.name}.png")
    for remark in (*piece.remarks, *form.remarks):
        print(f"musicldm: {remark}", file=sys.stderr)
    piece.save(audio, container)
    if not args.no_figure:
        piece.figure(figure)
    files = {"file": str(audio), "figure": None if args.no_figure else str(figure)}
    report(args.json, files | piece.recipe_at(audio), str(audio))


def container_of(path: Path) -> str:
    """The container of an audio file, as libsndfile names it."""
    with open_audio(path) as audio:
        return audio.container
