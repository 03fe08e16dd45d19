"""The ``musicldm`` command: each command parses, calls the library, and writes.

Results go to files and to stdout, progress and warnings to stderr. Every help tells the exit codes. A fault of the
program itself shows its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import contextmanager

from musicldm._version import __version__
from musicldm.cli.streams import Stream, lasting_streams
from musicldm.novelty import CopyError

# A module of this package for each: add_arguments(parser) and run(args). They are imported when asked for, and
# import torch only inside run, so that help comes at once.
COMMANDS = {
    "generate": "turn descriptions into music",
    "edit": "make a part of a recording anew: vary it, replace regions, extend it, or take it again",
    "loop": "turn descriptions into loops of a tempo and a number of bars",
    "reconstruct": "pass recordings through the models and measure what is lost",
    "convert": "turn a checkpoint of MusicLDM's authors into a model folder",
    "render": "turn scores (MIDI) into audio with captions, to train on",
    "train": "train one part: vae, vocoder, clap or diffusion; or a concept",
    "prepare": "make training data of a folder of recordings",
    "beats": "find beats, downbeats, tempo and metre of recordings",
    "mixup": "mix two recordings beat by beat, as training does",
    "evaluate": "measure what a model makes: quality, adherence to the words, novelty",
    "novelty": "index a training set, and check music against it",
    "app": "make music in a page of the browser, or over HTTP",
    "info": "show the recipe of a generated file, what a model can, or what is installed",
}
EXIT_CODES = (
    "Exit codes: 0 done; 1 good input could not be worked on, or more than half of a collection could not, or results "
    "could not be printed; 2 wrong input, or wrong ones among the files named while the others were done; 3 the guard "
    "against copies let no music through; 130 stopped by Ctrl-C."
)
QUIET = {  # what other packages would print; a user who sets one of these keeps it
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "critical",  # it logs what it then raises
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
# Whose warnings reach the user. Ours that torch's decorators call appear to come from those.
OUR_MODULES = r"(musicldm|vocoder|augment|configs)(\.|$)|torch\.utils\._contextlib$"


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says the defaults that say something."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Errors on one line, no abbreviated options."""

    def __init__(self, **options):
        usual = {"allow_abbrev": False, "formatter_class": HelpFormatter, "epilog": EXIT_CODES}
        super().__init__(**usual | options)

    def error(self, message: str):
        self.exit(2, f"musicldm: error: {message} (see `{self.prog} --help`)\n")


def build_parser(command: str | None = None) -> Parser:
    """The parser; of all commands only ``command`` gets its own arguments."""
    parser = Parser(prog="musicldm", description="Text to music, and everything to train it.")
    parser.add_argument("--version", action="version", version=f"musicldm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
        )
        if name == command:
            module = importlib.import_module(f"musicldm.cli.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of one call. Exits as argparse does."""
    command = next((word for word in argv if word in COMMANDS), None)
    parser = build_parser(command)
    args, rest = parser.parse_known_args(argv)
    # argparse takes a list of arguments from one place only; here `generate "a" --steps 9 "b"` means what it says.
    several = getattr(args, "several", None)
    if unknown := [word for word in rest if word.startswith("-") or several is None]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        setattr(args, several, [*getattr(args, several), *rest])
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    with lasting_streams() as printed:
        code = call(sys.argv[1:] if argv is None else list(argv))
        printed.flush()
        return code or unprinted(printed)


def unprinted(printed: Stream) -> int:
    """1 if results could not be printed, said on stderr unless whoever read them has seen enough; else 0."""
    if printed.failed is not None and not isinstance(printed.failed, BrokenPipeError):
        fail(OSError(f"not all results could be printed ({printed.failed.strerror}); the files are complete"), 1)
    return int(printed.failed is not None)


def call(argv: list[str]) -> int:
    """The exit code of the command ``argv``, with its error on stderr."""
    try:
        args = parse(argv)
        with quiet_libraries():
            return args.run(args) or 0
    except SystemExit as stop:  # argparse: help, version and errors
        return stop.code or 0
    except KeyboardInterrupt:
        print("musicldm: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        return fail(error, 3 if isinstance(error, CopyError) else 2)
    except (MemoryError, FloatingPointError) as error:
        return fail(error, 1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, known only once torch is imported
            raise
        return fail(error, 1)


def fail(error: BaseException, code: int) -> int:
    """Print ``error`` on one line; returns ``code``."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    print("musicldm: error:", " ".join(message.split()) or type(error).__name__, file=sys.stderr)
    return code


@contextmanager
def quiet_libraries():
    """Our warnings on one line each; those of other packages, which a user can do nothing about, nowhere."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=OUR_MODULES)
        warnings.showwarning = _show_warning
        yield


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print("musicldm: warning:", " ".join(str(message).split()), file=file or sys.stderr)
