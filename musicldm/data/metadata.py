"""Tables of recordings: ``metadata.jsonl`` or ``metadata.csv`` of an audio folder, row by row.

The folder follows the audio-folder convention: one JSON object a line, or one row of a table, with ``file_name`` and,
if there is a caption, ``text`` (and ``texts``: further captions of the same recording).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from musicldm.scores.splits import drawn_split

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
VALIDATION_SHARE = 0.05
VALIDATION_NAMES = ("validation", "val", "valid", "dev", "eval")
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(VALIDATION_NAMES, "validation")


def metadata_rows(folder: Path) -> list[dict]:
    """The rows of the folder's metadata, or one with the ``file_name`` of each audio file.

    Raises:
        ValueError: a row that cannot be read, or without ``file_name``.
    """
    rows = read_metadata(folder)
    if rows is not None:
        return rows
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [{"file_name": str(path.relative_to(folder))} for path in paths]


def read_metadata(folder: Path) -> list[dict] | None:
    """The rows of ``metadata.jsonl``, else of ``metadata.csv``; None if the folder has neither.

    The CSV has a line with the names of its columns; empty cells are left out.

    Raises:
        ValueError: a row that cannot be read, or without ``file_name``.
    """
    if (file := folder / "metadata.jsonl").is_file():
        rows = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}, is not JSON: {error}") from error
    elif (file := folder / "metadata.csv").is_file():
        rows = _csv_rows(file)
    else:
        return None
    for number, row in rows:
        if not isinstance(row, dict) or not row.get("file_name"):
            raise ValueError(f"{file}, line {number}, has no file_name")
    return [row for _, row in rows]


def _csv_rows(file: Path) -> list[tuple[int, dict]]:
    """Line number and filled cells of each row of a table as spreadsheets write it, by comma or semicolon."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 ({error.reason} at byte {error.start})") from error
    header = text.partition("\n")[0]
    lines = csv.DictReader(
        text.splitlines(keepends=True), delimiter=";" if header.count(";") > header.count(",") else ","
    )
    rows = []
    for row in lines:
        if None in row:
            raise ValueError(
                f"{file}, line {lines.line_num}, has more cells than the first line has names: captions with commas "
                "belong in double quotes"
            )
        rows.append((lines.line_num, {name: cell.strip() for name, cell in row.items() if cell and cell.strip()}))
    return rows


def row_texts(row: dict) -> list[str]:
    """The captions in a row of metadata: ``text``, ``caption`` and ``texts``."""
    texts = [row.get("text"), row.get("caption"), *listed(row.get("texts"))]
    return [text for text in texts if text]


def licence_of(row: dict) -> str | None:
    """The licence in a row of metadata: ``licence`` or ``license``."""
    licence = row.get("licence") or row.get("license")
    return str(licence) if licence else None


def listed(value: object) -> list:
    """``value`` if it is a list, else a list of it alone."""
    return value if isinstance(value, list) else [value]


def named_split(row: dict) -> str | None:
    """``train``, ``validation`` (also called val, valid, dev or eval) or ``test``, as a row of metadata says; or None.

    Raises:
        ValueError: it says something else.
    """
    if not (said := row.get("split")):
        return None
    if (split := SPLITS.get(str(said).strip().lower())) is None:
        raise ValueError(f"the split of {row.get('file_name')} is {said!r}; it must be one of {', '.join(SPLITS)}")
    return split


def split_of(key: str) -> str:
    """``train`` or ``validation``, drawn from a hash of ``key``."""
    return drawn_split(key, VALIDATION_SHARE)
