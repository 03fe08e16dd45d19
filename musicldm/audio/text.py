"""Text files: UTF-8, with or without a byte-order mark, whose lines end at newlines and nothing else."""

from __future__ import annotations

from pathlib import Path


def read_text(path: str | Path) -> str:
    r"""The text of ``path``, its newlines as "\n".

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}): save it in that encoding"
        ) from error


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file without their ends; `str.splitlines` would also cut at U+2028, U+0085 and others."""
    return text_lines(read_text(path))


def text_lines(text: str) -> list[str]:
    """The lines of ``text`` without their ends."""
    return text.removesuffix("\n").split("\n") if text else []


def is_text(text: str) -> bool:
    """Whether ``text`` has no unpaired surrogates, which JSON escapes can produce."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
