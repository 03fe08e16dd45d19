"""Standard output and error that never end the work: closed, full or left by their reader, or short of letters."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Stream:
    """The text stream ``stream``; what it has no letter for is escaped, and once it fails the rest goes nowhere."""

    def __init__(self, stream: TextIO):
        self.stream, self.failed = stream, None
        if getattr(stream, "errors", None) == "strict":
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            return self._fail(error) or len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failed = self.failed or error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())  # what its buffer still holds can go there
        os.close(nowhere)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


@contextmanager
def lasting_streams() -> Iterator[Stream]:
    """Standard output and error as `Stream` meanwhile, also those that were closed when the program began."""
    for number in range(3):  # else the next files that are opened would take their places
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Stream(stream or os.fdopen(i, "w", closefd=False)) for i, stream in enumerate(before, 1))
    try:
        yield sys.stdout
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
