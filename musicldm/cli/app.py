"""``musicldm app``: a page to make music in, and an HTTP interface."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from musicldm.audio.output import output_folder
from musicldm.cli.common import load_quietly

TOKENS = "MUSICLDM_TOKENS"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; the default is for this machine alone"
    )
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("musicldm-app"),
        metavar="DIR",
        help="folder for the results",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="a bundled model, a folder, or owner/name on the hub; may repeat, the first is used unless another is "
        "asked for (default: mini)",
    )
    parser.add_argument(
        "--token",
        action="append",
        metavar="TEXT",
        help=f"what a client must know, at least 8 characters; may repeat: each sees what was made with its own. Other "
        f"users of this machine can read it in the list of processes; the environment variable {TOKENS} may hold "
        "several instead, with spaces between them",
    )
    parser.add_argument("--no-token", action="store_true", help="let everybody in who can reach another --host")
    parser.add_argument("--name", action="append", metavar="HOST", help="a further name of this machine")
    parser.add_argument("--device", default="auto", help="auto (the fastest there is), cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")


def run(args: argparse.Namespace) -> None:
    """Serve until interrupted."""
    try:
        from musicldm.app import Options, serve
    except ImportError as error:
        raise ValueError(f"the app needs {error.name}, which is not installed: pip install 'musicldm[app]'") from error
    tokens = [*(args.token or []), *os.environ.get(TOKENS, "").split()]
    if tokens and args.no_token:
        raise ValueError("give either --token or --no-token")
    options = Options(
        out=args.out,
        models=tuple(args.model or ("mini",)),
        host=args.host,
        port=args.port,
        tokens=tuple(tokens),
        open_to_all=args.no_token,
        names=tuple(args.name or ()),
        device=args.device,
    )
    load_quietly()
    with output_folder(args.out):
        serve(options, lambda url: _ready(url, args))


def _ready(url: str, args: argparse.Namespace) -> None:
    """Say where the page is, and open it where there is a browser."""
    print(f"musicldm: the page is at {url}  (Ctrl-C ends; results in {args.out})", file=sys.stderr, flush=True)
    if not args.no_browser and not args.token and (sys.platform != "linux" or os.environ.get("DISPLAY")):
        import webbrowser

        webbrowser.open(url)
