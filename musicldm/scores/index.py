"""Index tables: facts about scores by their path, one row each, as spreadsheets write them.

    index.csv -> read_index -> Index: rows that can be used, and what is wrong with the others

Cells are parted by commas, semicolons or tabs, in UTF-8 or UTF-16. The first line names the columns.
"""

import codecs
import csv
import math
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from musicldm.scores.facts import TRUSTED_TEMPO, is_metre, is_tempo, parse_key

COLUMNS = ("path", "source", "licence", "piece_id", "title", "composer", "genre", "tempo_bpm", "tempo_source",
           "time_signature", "key")  # fmt: skip
DELIMITERS = ",;\t"
MOST_LINES = 20  # of one row, whose quoted cells may hold line ends


class Index(NamedTuple):
    """A table that was read."""

    rows: dict[str, dict[str, str]]  # path -> column -> cell
    faults: list[tuple[str, str]]  # path ("" where it is not known) and what is wrong with its row

    def by_name(self) -> dict[str, str]:
        """Every path of the table by its plain spelling, see `plain_path`."""
        return {plain_path(path): path for path in (*self.rows, *dict(self.faults)) if path}


def plain_path(path: str) -> str:
    r"""One spelling of a path: ``./a\b.mid`` -> ``a/b.mid``, letters composed, no leading slash."""
    return unicodedata.normalize("NFC", posixpath.normpath(path.replace("\\", "/")).lstrip("/"))


def read_index(path: Path) -> Index:
    """Read the table ``path``. Rows that cannot be used become faults, which name line and column.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text, or lacks columns.
    """
    text = _decode(path)
    lines = re.split("\r\n|\r|\n", text)
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.lower().startswith("sep=")), 0)
    delimiter, columns = max(
        ((mark, [cell.strip().lower() for cell in _parse(lines[first], mark) or []]) for mark in DELIMITERS),
        key=lambda choice: len({*COLUMNS} & {*choice[1]}),
    )
    if missing := [name for name in COLUMNS if name not in columns]:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; the first line must name them")
    if twice := [name for name in COLUMNS if columns.count(name) > 1]:
        raise ValueError(f"{path} has the columns {', '.join(twice)} twice; name each once in line {first + 1}")
    rows, faults = {}, []
    for number, cells in _records(lines, first + 1, delimiter, len(columns)):
        row = dict(zip(columns, (cell.strip() for cell in cells or _rough(lines[number - 1], delimiter)), strict=False))
        fault = _open(columns, lines[number - 1].split(delimiter)) if cells is None else _shape(columns, cells)
        fault = fault or _content(row, delimiter)
        if fault:
            faults.append((row.get("path", ""), f"{path}, line {number}: {fault}"))
        else:
            rows[row["path"]] = row
    return Index(rows, faults)


def _decode(path: Path) -> str:
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} is not in UTF-8 (line {line}); save it as CSV in UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path} is no table of text; save it as CSV in UTF-8")
    return text


def _records(lines: Sequence[str], at: int, delimiter: str, width: int) -> Iterator[tuple[int, list[str] | None]]:
    """Number of its first line, from 1, and cells of each row; None for them where a quote is not closed.

    A row goes on over line ends in quotes only if it then has ``width`` cells: a quote that is never closed costs one
    line, not all that follow.
    """
    while at < len(lines):
        used, cells = 1, _parse(lines[at], delimiter)
        while cells is None and used < MOST_LINES and at + used < len(lines):
            used += 1
            longer = _parse("\n".join(lines[at : at + used]), delimiter)
            cells = longer if longer is not None and len(longer) == width else None
        if cells is None:
            used = 1
        if cells is None or any(cell.strip() for cell in cells):
            yield at + 1, cells
        at += used


def _parse(text: str, delimiter: str) -> list[str] | None:
    """Cells of one row; None where a quote is still open at its end."""
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        if "end of data" in str(error) or "\n" in text:
            return None
    try:
        return next(csv.reader([text], delimiter=delimiter))  # text after a closing quote
    except csv.Error:
        return None


def _rough(line: str, delimiter: str) -> list[str]:
    return [cell.strip(' "') for cell in line.split(delimiter)]


def _open(columns: Sequence[str], cells: Sequence[str]) -> str:
    """What is wrong with a row in one of whose ``cells`` a quote is opened and never closed."""
    odd = [name for name, cell in zip(columns, cells, strict=False) if cell.count('"') % 2]
    return f"column {odd[0]}: a quote is not closed" if odd else "a quote is not closed"


def _shape(columns: Sequence[str], cells: Sequence[str]) -> str | None:
    """What is wrong with the number of ``cells``."""
    if any(cell.strip() for cell in cells[len(columns) :]):
        return f"{len(cells)} cells for {len(columns)} columns; cells that hold the separator belong in double quotes"
    if missing := [name for name in columns[len(cells) :] if name in COLUMNS]:
        return f"{len(cells)} cells for {len(columns)} columns; column {', '.join(missing)} is missing"
    return None


def _content(row: dict[str, str], delimiter: str) -> str | None:
    """What is wrong with the cells of ``row``. A decimal comma of its tempo becomes a point."""
    if not row["path"]:
        return "column path is empty"
    if row["tempo_source"] in TRUSTED_TEMPO and (said := row["tempo_bpm"]):
        row["tempo_bpm"] = said if delimiter == "," else said.replace(",", ".")
        if not is_tempo(_number(row["tempo_bpm"])):
            return f"column tempo_bpm: {said!r} is not a tempo in quarter notes a minute; leave it empty if unknown"
    metres = re.split(r"[,; ]+", row["time_signature"])
    if metres != [""] and not all(re.fullmatch(r"\d+/\d+", m) and is_metre(*map(int, m.split("/"))) for m in metres):
        return f"column time_signature: {row['time_signature']!r} is not a metre such as 3/4; leave it empty if unknown"
    try:
        parse_key(row["key"] or "C")
    except ValueError as error:
        return f"column key: {error}; leave it empty if unknown"
    return None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
