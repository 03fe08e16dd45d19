"""Several ways of doing one thing, timed in turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def in_turns(
    functions: dict[str, Callable[[], object]],
    repetitions: int,
    warm_ups: dict[str, Callable[[], object]] | None = None,
) -> dict[str, dict]:
    """Seconds of each function: by the clock, and of the processor's time, which other programs do not stretch.

    Before anything is timed, each is called once, or the shorter one of the same name in ``warm_ups``. Medians, and
    least and greatest.
    """
    times = {name: {"clock_s": [], "processor_s": []} for name in functions}
    for function in (warm_ups or functions).values():
        function()
    for _ in range(repetitions):
        for name, function in functions.items():
            clock, processor = time.perf_counter(), time.process_time()
            function()
            times[name]["processor_s"].append(time.process_time() - processor)
            times[name]["clock_s"].append(time.perf_counter() - clock)
    return {name: {kind: summary(values) for kind, values in kinds.items()} for name, kinds in times.items()}


def summary(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def ratio(times: dict[str, dict], slow: str, fast: str) -> float:
    """How many times ``fast`` is faster than ``slow``, in processor time."""
    return times[slow]["processor_s"]["median"] / times[fast]["processor_s"]["median"]
