"""An edit looked at together with its recording, before any model is opened.

Edit -> `prepare` -> Edit with its prompt and its regions in seconds, and the opened `Source`
"""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec
from typing import NamedTuple

from musicldm.editing import Source, check_regions, snap_to_beats
from musicldm.editing.beats import beats_near
from musicldm.generate.edit import Edit, own_prompt, resolved_retake


class Prepared(NamedTuple):
    """An edit that says everything, and its recording."""

    edit: Edit
    source: Source


def prepare(edit: Edit) -> Prepared:
    """``edit`` with what its recording and the recipe in it say, checked against the recording.

    Its prompt is that of the recipe where it has none; its regions have both ends, and lie at beats if they are to
    (``snap`` is then "none").

    Raises:
        OSError: the recording cannot be read.
        ValueError: it is no audio or silent, the regions do not fit it, or it carries no recipe where one is needed.
    """
    source = Source.open(edit.source)
    if edit.kind == "retake":
        return Prepared(resolved_retake(edit), source)
    source.check()
    if edit.prompt is None:
        edit = replace(edit, prompt=own_prompt(edit.source))
    if edit.kind == "inpaint":
        asked = [tuple(_open(end, at) for end, at in zip(pair, (-1, 1), strict=True)) for pair in edit.regions_s]
        regions = check_regions(asked, source.duration_s)
        if (edit.snap or default_snap()) == "beat":
            regions = snap_to_beats(regions, beats_near(source, regions), source.duration_s)
        edit = replace(edit, regions_s=tuple(map(tuple, regions)), snap="none")
    _check_comparable(edit, source)
    return Prepared(edit, source)


def made_anew(edit: Edit, source: Source) -> list[tuple[float, float]]:
    """What of ``source`` a prepared ``edit`` makes anew, in seconds from its beginning; extensions lie beyond it."""
    if edit.kind == "inpaint":
        return [(float(start), float(stop)) for start, stop in edit.regions_s]
    if edit.kind == "extend":
        sides = (-edit.before_s, 0.0), (source.duration_s, source.duration_s + edit.after_s)
        return [(start, stop) for start, stop in sides if start < stop]
    return [(0.0, source.duration_s)]


def default_snap() -> str:
    """Whether regions are moved to beats where nobody says: if madmom is installed."""
    return "beat" if find_spec("madmom") else "none"


def _open(end: float | None, side: int) -> float:
    return side * math.inf if end is None else end


def _check_comparable(edit: Edit, source: Source) -> None:
    """ValueError if what is new is too short to be compared with a training set, where that is wanted."""
    if edit.novelty is None:
        return
    from musicldm.novelty.alignment import WINDOWS_S

    shortest = min(stop - start for start, stop in made_anew(edit, source))
    if shortest < WINDOWS_S[0]:
        raise ValueError(
            f"the {shortest:.2f} s that are made anew are too short to compare with the training set, which needs "
            f"{WINDOWS_S[0]:g} s; make more of it anew, or leave novelty out"
        )
