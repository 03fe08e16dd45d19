"""Results of benchmarks as JSON, with the machine that they were measured on."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.machine import describe_machine
from musicldm.audio import write_whole


def keep(path: Path, sections: dict) -> None:
    """Add ``sections`` to the results in ``path``, in place of those of the same names."""
    before = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(before | {"machine": describe_machine()} | sections, indent=1) + "\n").encode())
