"""Checks of single values from outside, whoever takes them: each error names the value, and what can be instead."""

from __future__ import annotations

import math
import reprlib
import sys
from numbers import Integral, Real
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 4


def shown(value: object) -> str:
    """``value`` as Python writes it, for a message: long texts and lists with their middle or end left out."""
    return _SHORT.repr(value)


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> None:
    """ValueError unless ``value`` is a finite number from ``least`` to ``most``."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number{_limits(least, most)}, got {shown(value)}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be a number{_limits(least, most)}, got {shown(value)}")


def check_whole(name: str, value: Any, least: int = 1, most: float = math.inf) -> None:
    """ValueError unless ``value`` is a whole number from ``least`` to ``most``."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number{_limits(least, most)}, got {shown(value)}")


def check_text(name: str, value: object) -> None:
    """ValueError unless ``value`` is a text that can be written in Unicode.

    Half an emoji of a JSON file, or bytes of another encoding on a command line, come as characters that cannot.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} {shown(value)} is no Unicode text: character {error.start + 1} is the lone surrogate "
            f"U+{ord(value[error.start]):04X}; write the text in UTF-8, without half characters"
        ) from error


def check_kind(name: str, value: object, kinds: type | tuple[type, ...], what: str) -> None:
    """ValueError unless ``value`` is of one of ``kinds``, in words ``what``."""
    if not isinstance(value, kinds):
        raise ValueError(f"{name} must be {what}, got {shown(value)} ({type(value).__name__})")


def _limits(least: float, most: float) -> str:
    if math.isinf(least) and math.isinf(most):
        return ""
    if math.isinf(most):
        return f" of at least {least}"
    return f" from {least} to {most}" if not math.isinf(least) else f" of at most {most}"
