"""Regions of a recording that are replaced: parsing, checks, and snapping to beats.

"4:6.5", ":4", "10:"  ->  `parse_region`   ->  seconds
seconds               ->  `check_regions`  ->  regions inside the recording, or beyond its ends, in order
regions and beats     ->  `snap_to_beats`  ->  regions that begin and end at beats
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np

from musicldm.config.values import shown

NEARLY_S = 1e-3  # by which a region may exceed a recording, since lengths are displayed in milliseconds


class Region(NamedTuple):
    """A time range in seconds from the first sample of a recording; negative before it.

    An open end is infinite until `check_regions` replaces it by the end of the recording.
    """

    start_s: float
    stop_s: float

    def __str__(self) -> str:
        start = "" if self.start_s == -math.inf else f"{self.start_s:g}"
        return f"{start}:" if self.stop_s == math.inf else f"{start}:{self.stop_s:g}"


def parse_region(text: str) -> Region:
    """The region that ``text`` names: ``4:6.5``, ``:4`` from the beginning on, ``10:`` to the end; in seconds.

    Raises:
        ValueError: if the text has another form.
    """
    start, colon, stop = text.strip().partition(":")
    try:
        if not colon:
            raise ValueError
        region = Region(float(start) if start.strip() else -math.inf, float(stop) if stop.strip() else math.inf)
        written = [float(value) for value in (start, stop) if value.strip()]
        if not all(map(math.isfinite, written)):
            raise ValueError
    except ValueError:
        raise ValueError(f"a region is START:STOP in seconds, such as 4:6.5, :4 or 10:, got {shown(text)}") from None
    return region


def check_regions(regions: Iterable[Sequence[float]], duration_s: float, extend: bool = False) -> list[Region]:
    """``regions`` in order, with open ends replaced; adjacent regions are merged.

    Args:
        regions: pairs of start and stop in seconds.
        duration_s: of the recording.
        extend: whether regions may reach beyond the ends of the recording, which makes it longer.

    Raises:
        ValueError: if there are no regions, one is not a pair of numbers, empty, reversed or outside the recording, two
            overlap, or together they cover the whole recording.
    """
    found = sorted(_checked(region, duration_s, extend) for region in regions)
    if not found:
        raise ValueError("give at least one region, such as 4:6.5")
    merged = found[:1]
    for region in found[1:]:
        if region.start_s < merged[-1].stop_s:
            raise ValueError(f"the regions {merged[-1]} and {region} overlap; give their union, or parts that do not")
        if region.start_s == merged[-1].stop_s:
            merged[-1] = Region(merged[-1].start_s, region.stop_s)
        else:
            merged.append(region)
    if merged[0].start_s <= 0 and merged[0].stop_s >= duration_s:
        raise ValueError(
            f"the region {merged[0]} covers all of the {duration_s:.2f} s, so nothing is kept; generate new music, "
            "or vary the whole recording"
        )
    return merged


def _checked(region: Sequence[float], duration_s: float, extend: bool) -> Region:
    """``region`` with its open ends replaced."""
    pair = tuple(region) if isinstance(region, (tuple, list, np.ndarray)) else ()
    if len(pair) != 2 or any(not isinstance(v, Real) or isinstance(v, bool) or math.isnan(v) for v in pair):
        raise ValueError(f"a region must be two numbers, its start and its end in seconds, got {shown(region)}")
    start, stop = float(pair[0]), float(pair[1])
    asked = Region(start, stop)
    start = 0.0 if start == -math.inf else start
    stop = max(duration_s, start) if stop == math.inf else stop
    if not extend and duration_s < stop <= duration_s + NEARLY_S:
        stop = duration_s
    if not (math.isfinite(start) and math.isfinite(stop)):
        raise ValueError(f"the region {start:g} to {stop:g} must begin and end at finite times")
    if stop < start:
        raise ValueError(f"the region {asked} ends before it begins; give {stop:g}:{start:g}")
    outside = start > duration_s or stop < 0 if extend else start < 0 or stop > duration_s or start >= duration_s
    if outside:
        way = "leave no gap between them" if extend else "extend it instead, or give a region inside"
        raise ValueError(f"the region {asked} lies outside the recording, which lasts {duration_s:.3f} s; {way}")
    if stop == start:
        raise ValueError(f"the region {asked} is empty; give one that ends later than it begins")
    return Region(start, stop)


def snap_to_beats(
    regions: Sequence[Region], beats_s: Sequence[float], duration_s: float, within_s: float = 0.06
) -> list[Region]:
    """Move the borders of ``regions`` to the nearest beat, if one is near enough.

    Borders move inwards only, by at most ``within_s``, so that nothing else is replaced. Borders at the ends of the
    recording, or beyond, do not move, nor does a region that would become empty.

    Args:
        regions: in seconds.
        beats_s: times of the beats in seconds, in any order.
        duration_s: of the recording.
        within_s: largest movement in seconds.
    """
    beats = np.sort(np.asarray(beats_s, dtype=float))
    snapped = []
    for region in regions:
        start, stop = region
        later = beats[(beats >= start) & (beats <= start + within_s)]
        earlier = beats[(beats <= stop) & (beats >= stop - within_s)]
        if len(later) and 0 < start < duration_s:
            start = float(later[0])
        if len(earlier) and 0 < stop < duration_s:
            stop = float(earlier[-1])
        snapped.append(Region(start, stop) if start < stop else region)
    return snapped


def to_samples(region: Region, rate: int) -> tuple[int, int]:
    """The samples ``[start, stop)`` of ``region`` at ``rate`` Hz, at least one."""
    start = round(region.start_s * rate)
    return start, max(start + 1, round(region.stop_s * rate))
