"""Files of sections: a long piece as a list of what comes after what.

    20 calm piano              seconds, then the prompt
    8 bars drums come in       bars, where a tempo is known

Empty lines, and lines that begin with #, are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from musicldm.audio.text import read_lines
from musicldm.config.values import check_number, shown
from musicldm.generate.metre import bars_s, check_bpm
from musicldm.generate.recipe import check_sections

LINE = re.compile(r"(?P<length>\S+)(?:\s+(?P<unit>bars?|s|seconds?)(?=\s|$))?\s*(?P<prompt>.*)", re.DOTALL)
WAY_OUT = "write a length and a prompt, such as '20 calm piano', or '8 bars drums come in' with --bpm"


def read_sections(
    path: str | Path, bpm: float | None = None, meter: str | None = None
) -> tuple[tuple[str, float], ...]:
    """The prompt and the seconds of each section that the text file ``path`` lists; bars are of ``meter``, 4/4.

    Raises:
        OSError: it cannot be read.
        ValueError: it lists none, is no text, or a line, which the message names, cannot be understood.
    """
    sections: list[tuple[str, float]] = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            sections += check_sections([parse_section(line.strip(), bpm, meter)])
        except ValueError as error:
            raise ValueError(f"line {number} of {path}: {error}") from error
    if not sections:
        raise ValueError(f"{path} lists no sections; {WAY_OUT}, on each line")
    return tuple(sections)


def parse_section(line: str, bpm: float | None = None, meter: str | None = None) -> tuple[str, float]:
    """The prompt and the seconds that ``line`` names: ``20 calm piano``, or ``8 bars calm piano`` at ``bpm``.

    Raises:
        ValueError: it names none, or bars without a tempo.
    """
    found = LINE.fullmatch(line)
    try:
        length = float(found["length"]) if found else None
    except ValueError:
        length = None
    if length is None:
        raise ValueError(f"{shown(line)} does not begin with a length; {WAY_OUT}")
    check_number("the length", length, 0)
    if not length:
        raise ValueError(f"the length must be above 0, got {shown(line)}; {WAY_OUT}")
    if not found["prompt"]:
        raise ValueError(f"{shown(line)} has no prompt; {WAY_OUT}")
    if not (found["unit"] or "").startswith("bar"):
        return found["prompt"], length
    if bpm is None:
        raise ValueError(f"{shown(line)} counts bars, whose length depends on the tempo; give it with --bpm")
    check_bpm(bpm)
    return found["prompt"], bars_s(bpm, length, meter)
