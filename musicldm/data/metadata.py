"""Tables of recordings: ``metadata.jsonl`` or ``metadata.csv`` of an audio folder, row by row.

The folder follows the audio-folder convention: one JSON object per line, or one row of a table, with ``file_name`` and,
if there is a caption, ``text`` (and ``texts``: further captions of the same recording). Case and surrounding spaces of
column names are ignored.
"""

from __future__ import annotations

import csv
import json
import os
import re
import unicodedata
from pathlib import Path

from musicldm.audio.text import is_text, read_text, text_lines
from musicldm.scores.splits import drawn_split

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
OTHER_SUFFIXES = (".oga", ".opus", ".m4a", ".mp4", ".aac", ".aif", ".aiff")  # which `musicldm prepare` reads too
VALIDATION_SHARE = 0.05
VALIDATION_NAMES = ("validation", "val", "valid", "dev", "eval")
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(VALIDATION_NAMES, "validation")
TABLES = ("metadata.jsonl", "metadata.csv")
USED = (
    *("file_name", "text", "caption", "texts", "tags", "genre", "split", "licence", "license", "piece_id", "key"),
    "midi",
)
TOLD = ("title", "composer", "source", "score")  # of the index against copies
SEPARATORS = ",;\t"
SWALLOWED = re.compile(rf"\n[^\n]*({'|'.join(map(re.escape, SUFFIXES + OTHER_SUFFIXES))})\"?\s*[,;\t]", re.IGNORECASE)


def metadata_rows(folder: Path) -> list[dict]:
    """The rows of the folder's metadata, or one with the ``file_name`` of each audio file.

    Raises:
        ValueError: a row that cannot be read, or without ``file_name``.
    """
    rows = read_metadata(folder)
    return [{"file_name": name} for name in audio_files(folder)] if rows is None else rows


def audio_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Sorted names of the audio files below ``folder``, without the ``._`` files of macOS."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return [str(path.relative_to(folder)) for path in paths if not path.name.startswith("._") and path.is_file()]


def table_of(folder: Path) -> Path | None:
    """The folder's ``metadata.jsonl``, otherwise its ``metadata.csv``, in any case; None if it has neither."""
    there = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.name.lower() in TABLES}
    return next((there[name] for name in TABLES if name in there and there[name].is_file()), None)


def read_metadata(folder: Path) -> list[dict] | None:
    """The rows of ``metadata.jsonl``, else of ``metadata.csv``; None if the folder has neither.

    File names are returned as the folder has them; the table may have ``./a.wav``, ``sub\\a.wav``, or another Unicode
    normal form. The first line of a CSV file has the column names; empty cells are left out.

    Raises:
        ValueError: a row that cannot be read, or without ``file_name``.
    """
    if (file := table_of(folder)) is None:
        return None
    rows = _json_rows(file) if file.suffix.lower() == ".jsonl" else _csv_rows(file)
    spelling, found = _Spelling(folder), []
    for number, row in rows:
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            columns = f", only {', '.join(map(str, row))[:200]}" if isinstance(row, dict) and row else ""
            raise ValueError(f"{file}, line {number}, has no file_name{columns}")
        found.append(row | {"file_name": spelling(name)})
    return found


def by_known_names(file: Path, number: int, row: dict) -> dict:
    """``row`` by the names of its columns that are known: lower case, no spaces around them."""
    names = [name.strip().lower() if name.strip().lower() in USED + TOLD else name.strip() for name in row]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{file}, line {number}, has two columns that are called {twice[0]}: remove one")
    return dict(zip(names, row.values(), strict=True))


def _json_rows(file: Path) -> list[tuple[int, dict]]:
    rows = []
    for number, line in enumerate(text_lines(read_text(file)), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}, is not JSON: {error}") from error
        rows.append((number, by_known_names(file, number, row) if isinstance(row, dict) else row))
    return rows


def _csv_rows(file: Path) -> list[tuple[int, dict]]:
    """Line number and filled cells of each row of a table as spreadsheets write it, by comma, semicolon or tab."""
    text = read_text(file)
    header = text.partition("\n")[0]
    separator = max(SEPARATORS, key=header.count)
    lines = (line + "\n" for line in text_lines(text))
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t", strict=True)
    rows, columns, first = [], None, 1
    try:
        for cells in reader:
            if columns is None:
                columns = _columns(file, cells)
            elif cells:
                rows.append((first, _csv_row(file, first, columns, cells)))
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{file}, line {first}: {error}; a quotation mark there is not closed, or is one inside a quoted caption, "
            "where it must be doubled"
        ) from error
    return rows


def _columns(file: Path, cells: list[str]) -> list[str]:
    names = [name.strip() or f"column {i}" for i, name in enumerate(cells, start=1)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{file}, line 1, names two columns {twice[0]}: remove one")
    return list(by_known_names(file, 1, dict.fromkeys(names)))


def _csv_row(file: Path, number: int, columns: list[str], cells: list[str]) -> dict:
    if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
        raise ValueError(
            f"{file}, line {number}, has more cells than the first line has names ({', '.join(columns)}): captions "
            "with commas belong in double quotes"
        )
    if swallowed := [cell for cell in cells if SWALLOWED.search(cell)]:
        raise ValueError(
            f"{file}, line {number}: a quotation mark there is not closed, and {swallowed[0][:60]!r} goes on over "
            "other rows"
        )
    return {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if cell.strip()}


class _Spelling:
    """``spelling(name)``: a name in a table as the folder has it: relative, with slashes, in its normal form."""

    def __init__(self, folder: Path):
        self.folder, self.files = folder, None

    def __call__(self, name: str) -> str:
        plain = os.path.normpath(name)
        if os.path.exists(self.folder / plain):
            return plain
        slashes = os.path.normpath(name.replace("\\", "/"))
        if os.path.exists(self.folder / slashes):
            return slashes
        if self.files is None:
            there = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*"))
            self.files = {unicodedata.normalize("NFC", file): file for file in there}
        return self.files.get(unicodedata.normalize("NFC", slashes), slashes)


def differs_by_case(folder: Path, name: str) -> str | None:
    """A file of ``folder`` whose name differs from ``name`` only in case, if there is one."""
    there = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return next((file for file in sorted(there) if file.casefold() == name.casefold()), None)


def all_texts(row: dict) -> list:
    """The values of all caption columns of a row, of any type."""
    return [row.get("text"), row.get("caption"), *listed(row.get("texts"))]


def row_texts(row: dict) -> list[str]:
    """The captions in a row of metadata: ``text``, ``caption`` and ``texts``.

    Raises:
        ValueError: if one is not a string, or has an unpaired surrogate.
    """
    texts = all_texts(row)
    for text in texts:
        if not isinstance(text, str | None):
            raise ValueError(f"its captions and tags must be strings, got {text!r}")
        if text and not is_text(text):
            raise ValueError(f"its caption {text!r} has an unpaired surrogate; write the file as UTF-8 again")
    return [text for text in texts if text]


def unknown_columns(row: dict) -> list[str]:
    """Columns of a row that are not used; none for a row that `musicldm render` wrote."""
    return [] if "soundfont" in row else [name for name in row if name not in USED + TOLD]


def licence_of(row: dict) -> str | None:
    """The licence in a row of metadata: ``licence`` or ``license``."""
    licence = row.get("licence") or row.get("license")
    return str(licence) if licence else None


def listed(value: object) -> list:
    """``value`` if it is a list, otherwise a list with it."""
    return value if isinstance(value, list) else [value]


def named_split(row: dict) -> str | None:
    """``train``, ``validation`` (also called val, valid, dev or eval) or ``test``, as a row of metadata says; or None.

    Raises:
        ValueError: if the row has another word.
    """
    if not (said := row.get("split")):
        return None
    if (split := SPLITS.get(str(said).strip().lower())) is None:
        raise ValueError(f"the split of {row.get('file_name')} is {said!r}; it must be one of {', '.join(SPLITS)}")
    return split


def split_of(key: str) -> str:
    """``train`` or ``validation``, drawn from a hash of ``key``."""
    return drawn_split(key, VALIDATION_SHARE)
