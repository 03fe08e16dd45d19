"""What ``musicldm generate`` takes as a user sees it: a new process, imports and all, for ten seconds of music.

    python -m benchmarks.command --out benchmarks/results/command.json

Each run is a process of its own; the first, which fills the disk cache, does not count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.memory import UNITS
from benchmarks.results import keep
from benchmarks.timing import summary

CASES = {
    "imports": ["-c", "import musicldm.pipelines.text_to_music"],
    "fast": ["-m", "musicldm", "generate", "solo piano", "--seconds", "10.24", "--seed", "1"],
}
CASES["float32"] = [*CASES["fast"], "--no-fast"]


def run(arguments: list[str]) -> dict[str, float]:
    """Seconds by the clock and of processors, and the greatest resident memory, of one process."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        out = ["--out", folder] if "generate" in arguments else []
        process = subprocess.Popen([sys.executable, *arguments, *out], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        clock = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} failed with exit code {process.returncode}")
    return {"clock_s": clock, "processor_s": used.ru_utime + used.ru_stime, "bytes": used.ru_maxrss * UNITS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs = {name: [] for name in CASES}
    for repetition in range(1 + arguments.repetitions):
        for name, command in CASES.items():
            used = run(command)
            if repetition:
                runs[name].append(used)
    results = {name: {kind: summary([used[kind] for used in rows]) for kind in rows[0]} for name, rows in runs.items()}
    for name, result in results.items():
        clock, processor = result["clock_s"]["median"], result["processor_s"]["median"]
        print(f"{name:8} {clock:.1f} s, {processor:.1f} s of processors, {result['bytes']['median'] / 2**30:.2f} GiB")
    if arguments.out:
        keep(arguments.out, {"command": {"seconds_of_music": 10.24, "repetitions": arguments.repetitions} | results})


if __name__ == "__main__":
    main()
