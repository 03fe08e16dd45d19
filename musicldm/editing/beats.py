"""Beats near the regions of a recording, to which their borders can be moved."""

from __future__ import annotations

from collections.abc import Sequence

from musicldm.editing.regions import Region
from musicldm.editing.source import Source
from musicldm.editing.tempo import choose_tracker, measure_tempo

HEARD_S = 10.0  # seconds on either side of a border in which beats are tracked


def beats_near(source: Source, regions: Sequence[Region]) -> list[float]:
    """Beats of ``source`` around the borders of ``regions``, in seconds; madmom's, or librosa's with a warning."""
    heard: list[list[float]] = []
    for border in sorted(edge for region in regions for edge in region if 0 < edge < source.duration_s):
        start, stop = max(0.0, border - HEARD_S), min(source.duration_s, border + HEARD_S)
        if heard and start <= heard[-1][1]:
            heard[-1][1] = stop
        else:
            heard.append([start, stop])
    beats: list[float] = []
    tracker = choose_tracker() if heard else None
    for start_s, stop_s in heard:
        first = round(start_s * source.rate)
        waveform = source.read(first, min(source.length, round(stop_s * source.rate)))  # (A, L)
        beats += (first / source.rate + measure_tempo(waveform, source.rate, tracker=tracker).beats_s).tolist()
    return beats
