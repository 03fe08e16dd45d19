"""Audio from clients: kept within limits, and decoded in a process of its own.

    bytes -> a file of at most so many bytes -> child process -> WAV with the same samples, or one line of what is wrong

Decoders are written in C, and a file may be made to break them: the server itself only ever reads what the child wrote.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import warnings
from collections.abc import AsyncIterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from musicldm.app.options import Options
from musicldm.audio.marks import CHANGED, EDITED, NEW, read_mark
from musicldm.audio.output import full_disk_named

MEMORY = 4 * 2**30  # bytes of address space that decoding may take beyond what the child has when it starts


class Upload(NamedTuple):
    """What a client sent."""

    path: Path
    name: str  # as the client calls it
    sha256: str


class Decoded(NamedTuple):
    """What came of it."""

    path: Path  # a WAV file
    recipe: dict | None  # of one of our own files


class TooLarge(ValueError):
    """More bytes than are taken."""


async def receive(blocks: AsyncIterator[bytes], name: str, folder: Path, most: int) -> Upload:
    """A new file in ``folder`` of what ``blocks`` bring.

    Raises:
        TooLarge: if they are more than ``most`` bytes; nothing is left behind.
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, size, hashed = folder / f"{secrets.token_hex(8)}.upload", 0, hashlib.sha256()
    try:
        with full_disk_named(folder), path.open("xb") as file:
            async for block in blocks:
                size += len(block)
                if size > most:
                    raise TooLarge(
                        f"the upload is larger than the {most / 2**20:g} MiB that are taken; send a part of it"
                    )
                hashed.update(block)
                file.write(block)
    except BaseException:  # a client that goes away, too
        path.unlink(missing_ok=True)
        raise
    return Upload(path, name, hashed.hexdigest())


def decode(path: Path, options: Options) -> Decoded:
    """A WAV file, beside ``path``, of the same samples, rate and channels, and the recipe; ``path`` is removed.

    The file carries the recipe and the mark of AI-made media, if the upload does.

    Raises:
        ValueError: if it is no audio, too long, or decoding ends in a crash or takes too long.
    """
    decoded = path.with_suffix(".wav")
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_decode, args=(path, decoded, options.upload_s, theirs), daemon=True)
    try:
        child.start()
        theirs.close()
        late = f"decoding took more than {options.decoding_s:g} s"
        problem, recipe = ours.recv() if ours.poll(options.decoding_s) else (late, None)
    except EOFError:
        problem, recipe = "decoding it ended in a crash", None
    finally:
        if child.pid is not None:  # it has been started
            child.kill()
            child.join()
        ours.close()
        path.unlink(missing_ok=True)
    if problem is not None:
        decoded.unlink(missing_ok=True)
        raise ValueError(f"the upload cannot be used: {problem}")
    return Decoded(decoded, recipe)


def _decode(path: Path, decoded: Path, most_s: float, connection: Connection) -> None:
    """In the child: write ``decoded``, and send what is wrong, or None and the recipe if there is one."""
    _limit_memory()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 what decoders say is of no use to anybody
    try:
        from musicldm.editing import Source, write_patched

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = Source.open(path)
            if source.length > most_s * source.rate:
                raise ValueError(
                    f"it lasts {source.length / source.rate:.0f} s, and {most_s:g} s are taken; cut it first"
                )
            recipe, mark = _recipe(path), read_mark(path)
            write_patched(decoded, source, [], "wav", None, recipe, mark if mark in (NEW, CHANGED, EDITED) else None)
        connection.send((None, recipe))
    except (OSError, ValueError, MemoryError) as error:
        connection.send((str(error).replace(f"{path}", "it").replace("\n", " ") or "it needs too much memory", None))


def _recipe(path: Path) -> dict | None:
    from musicldm.audio import read_recipe

    try:
        return read_recipe(path)
    except ValueError:
        return None


def _limit_memory() -> None:
    """Where the system can, keep this process from taking all memory."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else open(os.devnull) as file:
        pages = file.read().split()
    now = int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
