"""Limits of time on what is done to a score."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_LIMIT_S = 1e6  # what a timer of the system takes


@contextmanager
def limited(seconds: float, what: str) -> Iterator[None]:
    """Raise ValueError in what takes longer than ``seconds``; a limit around it waits meanwhile.

    Signals do this, which reach the main thread only; elsewhere, and on systems without them, there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_):
        raise ValueError(f"{what} took more than {seconds:g} s; give more with --timeout-s, or repair the score")

    outer = signal.signal(signal.SIGALRM, stop)
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, min(seconds, LONGEST_LIMIT_S))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, outer)
        signal.setitimer(signal.ITIMER_REAL, left_s)
