"""Output: files that are written atomically, free names, and folders that belong to one run with one writer.

A command that can be resumed owns its folder. It first writes a file of settings there, the mark. Without the mark, no
file that the command would write may exist yet; see `check_mark`.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_TEXT = 60  # characters of a prompt in a file name
LONGEST_NAME = 255  # bytes, if the file system does not state a limit
LOCK_FILE = ".musicldm.lock"
PART = re.compile(r"\.[0-9a-f]{16}\.part")  # names of unfinished files of `write_whole`
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Messages of libraries for a full disk, besides the operating system's: numpy, torch, safetensors, pyarrow.
FULL_WORDS = re.compile(
    r"No space left|File too large|Disk quota|\d+ requested and \d+ written|PytorchStreamWriter failed writing|"
    r"enforce fail at inline_container|could not write"
)
_locks: set[int] = set()  # descriptors of the locks of this process


def write_whole(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically: whatever fails, ``path`` is either unchanged or complete.

    Raises:
        OSError: with the name of ``path``.
    """
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file, open for writing and reading, that becomes ``path`` when the context ends without an error.

    Whatever fails, ``path`` is either unchanged or complete.

    Raises:
        OSError: with the name of ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")  # the same folder, so the same disk
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a full disk may be reported only here
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_full(error: BaseException) -> bool:
    """Whether ``error``, or one of its causes, says that a disk is full."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or FULL_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn the errors of all libraries for a full disk into an OSError that names ``folder`` and what to do."""
    try:
        yield
    except Exception as error:
        if not is_full(error) or (isinstance(error, OSError) and "ake room" in str(error)):
            raise
        name = getattr(error, "filename", None) or folder
        raise OSError(
            f"{name} cannot be written, the disk is full ({str(error).strip().splitlines()[0][:200]}): "
            f"make room on the disk of {folder}, or give a folder on another one with --out"
        ) from error


def slug(text: str) -> str:
    """``text`` as part of a file name: lower-case letters and digits of any script, joined by hyphens."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())
    joined = "-".join(words)
    while len(joined) > LONGEST_TEXT or len(joined.encode()) > 3 * LONGEST_TEXT:
        joined = joined[:-1]
    return joined.strip("-") or "music"


def free_name(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path:
    """``folder/stem`` (without suffix), with a number if a file of that name with one of ``suffixes`` exists.

    A stem that is too long for the file system is cut.
    """
    suffix_bytes = max(len(suffix.encode()) for suffix in suffixes)
    for number in itertools.count(1):
        ending = "" if number == 1 else f"_{number}"
        name = fitting(folder, stem, suffix_bytes + len(ending)) + ending
        if not any(os.path.lexists(folder / f"{name}{suffix}") for suffix in suffixes):
            break
    return folder / name


def fitting(folder: Path, name: str, more: int = 0) -> str:
    """``name``, cut so that with ``more`` bytes it is a valid file name in ``folder``."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        longest = os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        longest = LONGEST_NAME
    encoded = os.fsencode(name)
    return name if len(encoded) <= longest - more else encoded[: longest - more].decode(errors="ignore")


def check_mark(folder: Path, mark: str, writes: Sequence[str], command: str) -> bool:
    """Whether ``folder`` holds the ``mark`` of an earlier run of ``command``. Without it, no file may be in the way.

    Args:
        folder: the output folder.
        mark: name of the file of settings.
        writes: patterns of all other names in ``folder`` that the command writes.
        command: for the message.

    Raises:
        FileExistsError: if a file is in the way; the message names it.
        NotADirectoryError: if ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"the output folder {folder} is a file; give another one with --out")
    if (folder / mark).is_file():
        return True
    found = {path for pattern in (mark, *writes) for path in folder.glob(pattern) if _holds_something(path)}
    if there := sorted(path.relative_to(folder).as_posix() for path in found):
        names = ", ".join(there[:5]) + (f" and {len(there) - 5} more" if len(there) > 5 else "")
        raise FileExistsError(
            f"{folder} holds {names}, but no {mark} of `musicldm {command}`; nothing was "
            "changed. Give another folder with --out, or move these files away"
        )
    return False


def _holds_something(path: Path) -> bool:
    """Whether ``path`` holds more than the remains of a run that was killed before it wrote its mark."""
    names = [child.name for child in path.iterdir()] if path.is_dir() else [path.name]
    return not all(PART.fullmatch(name) or name == LOCK_FILE for name in names)


def read_mark(file: Path, command: str, *keys: str) -> Any:
    """The JSON in the mark ``file``: an object with ``keys`` if any are given, otherwise a string.

    Raises:
        FileExistsError: if it is something else, which `musicldm COMMAND` has not written.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict if keys else str) or not set(keys) <= set(content):
        raise FileExistsError(f"{file} was not written by `musicldm {command}`; give another folder with --out")
    return content


def remove_own(folder: Path, *patterns: str) -> None:
    """Remove ``folder`` and the files in it that match ``patterns``; nothing if there are other files.

    Raises:
        FileExistsError: if there are other files; the message names one.
    """
    if not folder.is_dir():
        return
    own = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    if other := sorted(path.name for path in folder.iterdir() if path not in own):
        raise FileExistsError(f"{folder / other[0]} is not of this run, which would replace {folder}; move it away")
    shutil.rmtree(folder)


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Make the folder ``path`` and check that it can be written; empty new folders are removed at the end.

    The error for a disk that becomes full names the folder, whichever library was writing.

    Raises:
        OSError: if ``path`` is a file, or cannot be written.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"the output folder {path} is a file; give another one with --out")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        _remove_empty(missing)
        raise OSError(
            f"cannot write to the output folder {path} ({error.strerror}); give another one with --out"
        ) from error
    try:
        with full_disk_named(path):
            yield path
    finally:
        _remove_empty(missing)


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of ``folders`` (inner first) that are empty."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def sole_writer(folder: Path, work: str, wait_s: float = 0.0) -> Iterator[None]:
    """Lock ``folder``, which is made, against other processes and other calls for the time of the context.

    The operating system releases the lock when the process ends for any reason. ``wait_s`` is how long to wait for it.

    Raises:
        BlockingIOError: if another process works there; the message names it.
    """
    with output_folder(folder):
        until = time.monotonic() + wait_s
        while True:
            try:
                lock = _lock(folder, work)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
            time.sleep(0.2)
        try:
            yield
        finally:
            if lock is not None:
                (folder / LOCK_FILE).unlink(
                    missing_ok=True
                )  # before the lock is released; `_lock` checks that it exists
                _locks.discard(lock)
                os.close(lock)


def _lock(folder: Path, work: str) -> int | None:
    """The descriptor of the locked lock file of ``folder``; None, with a warning, if the file system has no locks."""
    path = folder / LOCK_FILE
    try:
        import fcntl
    except ImportError:
        _warn_unlocked(folder, "this system")
        return None
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(lock, 500).decode(errors="replace") or "another process"
            os.close(lock)
            raise BlockingIOError(
                f"{folder} is being written by {holder}; wait until that ends, or give another folder with --out"
            ) from error
        except OSError as error:  # such as on network file systems
            os.close(lock)
            path.unlink(missing_ok=True)
            _warn_unlocked(folder, f"its file system ({error.strerror})")
            return None
        if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
            break
        os.close(lock)  # the previous holder has removed the file
    os.ftruncate(lock, 0)
    os.write(lock, f"process {os.getpid()} on {socket.gethostname()} (musicldm {work})".encode())
    _locks.add(lock)
    return lock


def _warn_unlocked(folder: Path, where: str) -> None:
    warnings.warn(
        f"{where} has no file locks; do not start a second run that writes to {folder} at the same time", stacklevel=4
    )


def _forget_locks() -> None:
    """In a forked process: close its copies of the descriptors, which would keep the locks of a killed parent."""
    for lock in _locks:
        os.close(lock)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
