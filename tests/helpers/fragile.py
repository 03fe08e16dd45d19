"""Functions for other processes and machines, some of which end them; importing this is quick."""

import os
import signal
import time
from pathlib import Path

from musicldm.data.prepare import Measure


def fragile_square(x: int) -> int:
    """The square of ``x``; 3 ends the process, 5 raises."""
    if x == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if x == 5:
        raise LookupError(f"no square of {x}")
    return x * x


def fails_once(file: Path) -> str:
    """Ends the process, unless ``file`` says that it did before."""
    if not file.exists():
        file.touch()
        os._exit(7)
    return "done"


class FragileMeasure(Measure):
    """Dies of every file called fatal.wav."""

    def __call__(self, job) -> None:
        if job.name == "fatal.wav":
            os.kill(os.getpid(), signal.SIGSEGV)
        super().__call__(job)


class Where:
    """The machine that computes, once another one does too, and how often this object was asked."""

    def __init__(self, folder: Path):
        self.folder, self.calls = folder, 0

    def __call__(self, x: int) -> tuple[str, int, int]:
        import ray

        self.calls += 1
        if x < 0:
            raise LookupError(f"{x} is negative")
        machine = ray.get_runtime_context().get_node_id()
        (self.folder / machine).touch()
        deadline = time.monotonic() + 120
        while len(list(self.folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        return machine, self.calls, x
