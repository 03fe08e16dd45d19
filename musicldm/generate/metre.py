"""Tempo, bars and metre, as they are asked for: 4 bars of 3/4 at 120 BPM last 6 s."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

import numpy as np

from musicldm.config.values import check_kind, check_number, check_whole, shown
from musicldm.editing.tempo import FASTEST_BPM, LIMIT, SLOWEST_BPM, is_tempo
from musicldm.scores.sketches import Sketch

METER = "4/4"
DENOMINATORS = (1, 2, 4, 8, 16, 32)
MOST_BEATS = 64  # in a bar
MOST_BARS = 10_000
LEAST_LOOP_S = 1.0
MOST_PULSE = 1.0
RELEASE_S = 0.05  # that the notes of a sketch may sound beyond the bars of a loop
TEMPO_CANDIDATES = 16  # made at most for a tempo, unless the request says how many


@dataclass(frozen=True)
class Take:
    """Which candidate became the piece, and what was done with it: enough to make it again without choosing.

    Raises:
        ValueError: naming the first value that cannot be.
    """

    seed: int  # of the first of the candidates that were made together
    size: int  # how many these were
    place: int  # which of them it was, from 0
    made_samples: int  # how long they were made
    speed: float = 1.0  # how many times as fast it was played
    start: int | None = None  # of a loop: the sample of the stretched loop that became the first; None: not chosen yet
    tried: int = 1  # candidates before it was found
    pulse: float = 0.0  # how strong the beats in its first noise were

    def __post_init__(self):
        for name, least in (("seed", 0), ("size", 1), ("made_samples", 1), ("tried", 1)):
            check_whole(f"take's {name}", getattr(self, name), least)
        check_whole("take's place", self.place, 0, self.size - 1)
        check_number("take's pulse", self.pulse, 0, MOST_PULSE)
        check_number("take's speed", self.speed, 1 - LIMIT - 1e-9, 1 + LIMIT + 1e-9)
        if self.start is not None:
            check_whole("take's start", self.start, 0)

    @classmethod
    def of(cls, value: Take | dict | None) -> Take | None:
        """``value``, or what a recipe has for it; ValueError for anything else."""
        check_kind("take", value, (cls, dict, type(None)), "a Take, its fields, or None")
        if not isinstance(value, dict):
            return value
        known, given = {field.name for field in fields(cls)}, set(value)
        if missing := {"seed", "size", "place", "made_samples"} - given:
            raise ValueError(f"take has no {', '.join(sorted(missing))}; leave it out, and a candidate is chosen again")
        if unknown := given - known:
            raise ValueError(f"take has unknown fields {', '.join(sorted(map(str, unknown)))}; leave it out")
        return cls(**value)


def beats_of(meter: str | None) -> tuple[int, int]:
    """Beats in a bar of ``meter``, such as "6/8", and the note that counts as one: (6, 8).

    Raises:
        ValueError: if it is no meter.
    """
    meter = METER if meter is None else meter
    check_kind("meter", meter, str, "beats and the note of a beat, such as 3/4 or 7/8")
    found = re.fullmatch(r"(\d{1,2})/(\d{1,2})", meter)
    if not found or not 1 <= int(found[1]) <= MOST_BEATS or int(found[2]) not in DENOMINATORS:
        raise ValueError(
            f"meter must be the beats in a bar (1 to {MOST_BEATS}) and the note of a beat "
            f"({', '.join(map(str, DENOMINATORS))}), such as 3/4 or 7/8, got {shown(meter)}"
        )
    return int(found[1]), int(found[2])


def is_compound(meter: str | None) -> bool:
    """Whether three beats of ``meter`` may be felt as one, as in 6/8 and 12/8."""
    numerator, denominator = beats_of(meter)
    return denominator >= 8 and numerator % 3 == 0


def bars_s(bpm: float, bars: float, meter: str | None = None) -> float:
    """How many seconds ``bars`` bars of ``meter`` last, whose beats (the denominator's notes) come ``bpm`` a minute."""
    return bars * beats_of(meter)[0] * 60 / bpm


def check_bpm(bpm: float) -> None:
    """ValueError unless ``bpm`` is a tempo that can be asked for."""
    check_number("bpm", bpm)
    if not SLOWEST_BPM <= bpm <= FASTEST_BPM:
        raise ValueError(f"bpm must be from {SLOWEST_BPM:g} to {FASTEST_BPM:g} beats a minute, got {shown(bpm)}")


def check_bars(bpm: float, bars: int, meter: str | None) -> float:
    """How many seconds ``bars`` last; ValueError if they are none, or too short for a loop."""
    check_whole("bars", bars, 1, MOST_BARS)
    seconds = bars_s(bpm, bars, meter)
    if seconds < LEAST_LOOP_S:
        raise ValueError(
            f"{bars} bar{'s' if bars > 1 else ''} of {meter} at {bpm:g} BPM last {seconds:.2f} s; a loop lasts "
            f"{LEAST_LOOP_S:g} s at least: give more bars or a slower tempo"
        )
    return seconds


def check_tempos(sketch: Sketch, bpm: float, meter: str | None) -> None:
    """ValueError if ``sketch`` states another tempo, for most of its time, than ``bpm`` beats of ``meter``."""
    tempos = sketch.score.tempos
    if not len(tempos):
        return
    lasting = np.diff(np.append(tempos[:, 0], max(sketch.seconds, tempos[-1, 0])))
    stated = float(tempos[lasting.argmax(), 1]) * beats_of(meter)[1] / 4  # quarter notes as beats
    if not is_tempo(bpm, stated, is_compound(meter)):
        raise ValueError(
            f"the score has {stated:.4g} BPM and bpm is {bpm:g}; leave bpm (--bpm) out, or change the score's tempo"
        )


def check_fits_bars(sketch: Sketch, bpm: float, bars: int, meter: str | None) -> None:
    """ValueError if ``sketch`` is longer than a loop of ``bars``, or has chords and is shorter."""
    seconds = bars_s(bpm, bars, meter)
    is_longer = sketch.seconds > seconds + RELEASE_S
    if is_longer or ("chords" in sketch.kinds and sketch.seconds < seconds - RELEASE_S):
        has = sketch.seconds / bars_s(bpm, 1, meter)
        raise ValueError(
            f"the bars do not fit: the score lasts {sketch.seconds:.4g} s, which is {has:.4g} bars of {meter} at "
            f"{bpm:g} BPM, and the loop has {bars}; give as many as the score has, or leave bars (--bars) out"
        )
