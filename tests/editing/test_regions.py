"""Regions: what can be written, which are refused, and how they move to beats."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicldm.editing import Region, check_regions, parse_region, snap_to_beats, to_samples


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4:6.5", (4, 6.5)), (":4", (-math.inf, 4)), ("10:", (10, math.inf)), (" 1e0 : 2 ", (1, 2)), ("-3:1", (-3, 1))],
)
def test_regions_are_read(text, expected):
    assert parse_region(text) == expected


def test_open_regions_reach_to_the_ends():
    assert check_regions([parse_region("10:"), parse_region(":4")], 12) == [(0, 4), (10, 12)]
    assert [str(parse_region(text)) for text in ("4:6.5", ":4", "10:")] == ["4:6.5", ":4", "10:"]


@pytest.mark.parametrize("text", ["", "4", "4-6", "a:b", "4:b", "nan:5", "inf:5", "4:6:8", "4:inf", "4,5:6"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"a region is START:STOP in seconds, such as 4:6\.5, .* got"):
        parse_region(text)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([(5, 11)], r"5:11 lies outside the recording, which lasts 10\.000 s"),
        ([(-1, 2)], "-1:2 lies outside"),
        ([(12, 13)], "12:13 lies outside"),
        ([(10, math.inf)], "10: lies outside"),
        ([(6, 4)], "6:4 ends before it begins; give 4:6"),
        ([(4, 4)], "4:4 is empty"),
        ([(1, 3), (6, 7), (2, 4)], "1:3 and 2:4 overlap"),
        ([(0, 10)], r"covers all of the 10\.00 s"),
        ([(0, 4), (4, 10)], "covers all"),
        ([(-math.inf, math.inf)], "covers all"),
        ([(math.nan, 4)], "must be two numbers"),
        ([(1, "2")], "must be two numbers"),
        ([(1, 2, 3)], "must be two numbers"),
        ([4], "must be two numbers"),
        ([(True, 4)], "must be two numbers"),
        ([], "at least one region"),
    ],
)
def test_regions_that_cannot_be_are_refused(regions, message):
    with pytest.raises(ValueError, match=message) as error:
        check_regions(regions, 10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("regions", [[(10.5, 12)], [(-3, -1)], [(-1, 11)], [(4, 3)], [(math.inf, 12)]])
def test_extensions_that_cannot_be_are_refused(regions):
    with pytest.raises(ValueError, match="region"):
        check_regions(regions, 10, extend=True)


def test_extensions_reach_beyond_and_neighbours_become_one():
    assert check_regions([(10, 14), (-2, 0)], 10, extend=True) == [(-2, 0), (10, 14)]
    assert check_regions([(9, 12)], 10, extend=True) == [(9, 12)]
    assert check_regions([(4, 5), (2, 4)], 10) == [(2, 5)]
    assert check_regions([np.array([4, 10.0004])], 10) == [(4, 10)]  # the length is told in milliseconds


BEATS = [0.0, 0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ((0.45, 1.55), (0.5, 1.5)),
        ((0.55, 1.45), (0.55, 1.45)),  # outwards, so not moved
        ((0.43, 1.57), (0.43, 1.57)),  # too far
        ((0.5, 1.5), (0.5, 1.5)),
        ((0.0, 1.55), (0.0, 1.5)),
        ((1.45, 2.2), (1.5, 2.2)),  # the end of the recording
        ((-0.03, 0.45), (-0.03, 0.45)),
        ((0.46, 0.54), (0.46, 0.54)),  # would be empty
        ((0.97, 1.02), (0.97, 1.02)),
    ],
)
def test_borders_move_to_beats_inwards_only(region, expected):
    assert snap_to_beats([Region(*region)], BEATS[::-1], 2.2) == [expected]
    assert snap_to_beats([Region(*region)], [], 2.2) == [region]


@settings(max_examples=40)
@given(
    start=st.floats(0, 9),
    length=st.floats(0.001, 5),
    beats=st.lists(st.floats(-1, 11), max_size=4),
)
def test_snapping_replaces_nothing_more(start, length, beats):
    region = Region(start, min(10.0, start + length))
    snapped = snap_to_beats([region], beats, 10.0)[0]
    assert region.start_s <= snapped.start_s < snapped.stop_s <= region.stop_s
    assert max(snapped.start_s - region.start_s, region.stop_s - snapped.stop_s) <= 0.06 + 1e-9


def test_samples_of_a_region_are_at_least_one():
    assert to_samples(Region(1, 2.5), 44_100) == (44_100, 110_250)
    assert to_samples(Region(1, 1 + 1e-9), 8000) == (8000, 8001)
    assert to_samples(Region(-0.5, 0), 8000) == (-4000, 0)
