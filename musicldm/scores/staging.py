"""Where the parts of a rendering stand between left and right, and in what room.

Score, Effects -> draw_stage -> Stage -> pan_score -> a Score that is heard so
"""

from collections.abc import Mapping
from typing import NamedTuple

import mido
import numpy as np

from musicldm.scores.general_midi import DRUM_CHANNEL
from musicldm.scores.reading import Score
from musicldm.scores.synthesis import Effects

PAN, PAN_FINE = 10, 42  # controllers
EDGE_SHARE = 0.1  # how often a part of several stands at the very edge
CENTRED = 0.25  # of the spread: where basses, drums and soloists stand, as on most records
BASSES = range(32, 40)  # programs


class Stage(NamedTuple):
    """Places of one rendering's parts, and their room."""

    pans: Mapping[int, int]  # channel -> 0 left, 64 in the middle, 127 right
    spread: float  # of the parts: 0 all in the middle, 1 from edge to edge
    effects: Effects


def draw_stage(score: Score, effects: Effects, rng: np.random.Generator) -> Stage:
    """Draw places for the channels of ``score``, and how wide and how dull the room of ``effects`` is."""
    spread = float(rng.random())
    channels = np.unique(score.notes["channel"]).tolist()
    pans = {}
    for channel in channels:
        program = score.notes["program"][score.notes["channel"] == channel][0]
        place, at_edge = float(rng.uniform(-1, 1)) * spread, rng.random() < EDGE_SHARE
        if len(channels) == 1 or channel == DRUM_CHANNEL or program in BASSES:
            place *= CENTRED
        elif at_edge:
            place = 1.0 if place > 0 else -1.0
        pans[channel] = round(63.5 + 63.5 * place)
    room = effects._replace(damp=float(rng.uniform(0, 0.6)), width=float(rng.uniform(0.2, 1.0)))
    return Stage(pans, spread, room)


def pan_score(score: Score, pans: Mapping[int, int]) -> Score:
    """``score`` with each channel of ``pans`` at its place from the start, whatever it said itself."""
    placed = [(0.0, mido.Message("control_change", channel=c, control=PAN, value=v)) for c, v in pans.items()]
    replaced = {(channel, control) for channel in pans for control in (PAN, PAN_FINE)}
    kept = [
        (time, message)
        for time, message in score.controls
        if message.type != "control_change" or (message.channel, message.control) not in replaced
    ]
    return score._replace(controls=placed + kept)
