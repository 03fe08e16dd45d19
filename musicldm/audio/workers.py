"""Applies a function to many items in worker processes that may crash.

    items  ->  n processes, each with its own copy of the function  ->  (index, value or Crash)

Decoders are written in C: a bad file may crash the process that reads it. That must affect this file only.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, cast

TRIES = 2  # for an item: a process may have crashed because others used the memory


class Crash(NamedTuple):
    """The result for an item whose process crashed at every try."""

    reason: str


class Workers:
    """``n`` processes that compute ``function(item)``; use as a context.

    ``function`` is sent to each of them when it starts, so it and the items must be picklable. Its exceptions
    are raised here. A process that crashes is replaced.
    """

    def __init__(self, function: Callable[[Any], Any], n: int = 1):
        self.children = [_Child(function) for _ in range(n)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_) -> None:
        for child in self.children:
            child.stop()

    def map(self, items: Sequence) -> Iterator[tuple[int, Any]]:
        """``(i, function(items[i]))`` in the order in which they are done; a `Crash` in place of a missing value.

        Raises:
            RuntimeError: if a process ended before it could start.
        """
        waiting = [(i, 1) for i in reversed(range(len(items)))]  # places, and which try it is
        busy: dict[Connection, tuple[_Child, int, int]] = {}
        free = list(self.children)
        try:
            while waiting or busy:
                while waiting and free:
                    child, (i, attempt) = free.pop(), waiting.pop()
                    busy[child.send(items[i])] = child, i, attempt
                for connection in wait(list(busy)):
                    child, i, attempt = busy.pop(cast(Connection, connection))
                    free.append(child)
                    value = child.receive()
                    if isinstance(value, Crash) and attempt < TRIES:
                        waiting.append((i, attempt + 1))
                    else:
                        yield i, value
        finally:
            for child, _, _ in busy.values():  # these results are no longer needed
                child.stop()


class Apart:
    """``function`` in a separate process: ``apart(item)`` is its value, or a `Crash`."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function
        self.workers: Workers | None = None

    def __call__(self, item: Any) -> Any:
        self.workers = self.workers or Workers(self.function)
        ((_, value),) = self.workers.map([item])
        return value


class _Child:
    """One worker process, started when it is first needed."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function
        self.process: BaseProcess | None = None
        self.connection: Connection | None = None

    def send(self, item: Any) -> Connection:
        """Start ``item``; returns a connection that becomes ready when it is done."""
        if self.process is not None and not self.process.is_alive():
            self.stop()
        if self.process is None:
            context = get_context("spawn")  # not fork: the parent may have threads
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(self.function, theirs), daemon=True)
            self.process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            try:
                self.connection.recv()
            except EOFError as error:
                self.stop()
                raise RuntimeError(
                    "a worker process ended before it could start (see above); a script must start workers below "
                    "`if __name__ == '__main__':`"
                ) from error
        self.connection.send(item)
        return self.connection

    def receive(self) -> Any:
        """The result of the item."""
        try:
            value, error = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self.stop()
            return Crash(f"ended the process that read it, {TRIES} times ({how})")
        if error is not None:
            raise error
        return value

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = self.connection = None


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent stops this one
    connection.send("ready")
    while True:
        try:
            item = connection.recv()
        except EOFError:  # the parent has gone
            return
        try:
            answer: tuple[Any, Exception | None] = function(item), None
        except Exception as error:  # raised again where it can be told
            answer = None, error
        connection.send(answer)
