"""How high passages score by chance: a background of other music, for collections too small to tell by themselves.

``background.json`` holds what `benchmarks.small_collections` measured: how often the best passage of two recordings of
45 s that have nothing to do with each other exceeds a level, and by how much on average (an exponential tail, as
maxima of many comparisons have; Coles, 2001, An Introduction to Statistical Modeling of Extreme Values). It holds the
same of bootstrap samples of these recordings, which tell how sure that is.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from musicldm.novelty.alignment import FRAMES_PER_S

if TYPE_CHECKING:
    from musicldm.novelty.index import NoveltyIndex

FALSE_ALARMS = 0.01  # of recordings that copied nothing
ENOUGH_PIECES = 99  # a collection of as many knows its own hundredth
PRIOR = 8  # pieces that the background's scale counts for beside a collection's own
MOST = 0.2  # of a piece's score above the median: more is a copy within the collection


@functools.cache
def background() -> dict:
    """What the package ships: name, recordings, recording_s, growth, level, rate, scale and replicates."""
    return json.loads((Path(__file__).parent / "background.json").read_text(encoding="utf-8"))


def units(seconds: float | np.ndarray, shipped: dict) -> float | np.ndarray:
    """How many recordings of the background's length one of ``seconds`` is worth: music repeats itself."""
    return (np.asarray(seconds) / shipped["recording_s"]) ** shipped["growth"]


class PassageTest(NamedTuple):
    """What a passage's score means for one recording and one collection."""

    basis: str  # background; collection, if its own pieces agree more; or base rate, that of a large one
    threshold: float  # above which a passage is a copy
    comparisons: float  # pairs of recordings of the background's length
    own: Tail | None  # of a small collection

    def chance(self, score: float) -> tuple[float, float, float]:
        """Share of recordings that copied nothing which reach ``score``, with its 95 % interval."""
        shipped = background()
        rates = np.array([(shipped["rate"], shipped["scale"]), *shipped["replicates"]])
        pairs = self.comparisons * rates[:, 0] * np.exp((shipped["level"] - score) / rates[:, 1])
        shares = -np.expm1(-pairs)
        by_background = shares[0], *np.quantile(shares[1:], (0.025, 0.975))
        by_own = self.own.chance(score) if self.own else by_background
        return tuple(float(max(each)) for each in zip(by_background, by_own, strict=True))

    def record(self, score: float) -> dict:
        """For reports."""
        told = {"basis": self.basis, "background": background()["name"]}
        for name, interval, at in (
            ("chance", "chance_interval", score),
            ("false_alarm_rate", "false_alarm_interval", self.threshold),
        ):
            share, *around = self.chance(at)
            told |= {name: share, interval: around} if self.basis != "base rate" else {name: None, interval: None}
        return told


class Tail(NamedTuple):
    """Scores of a collection's pieces among each other: half of them exceed the median, ever fewer what is higher."""

    median: float
    scale: float  # mean excess; that of the background where there are few
    weight: float  # number of pieces that it rests on
    share: float  # of recordings like the one that is checked which exceed the median: half, of shorter ones fewer

    @classmethod
    def of(cls, scores: list[float], shipped: dict, length: float) -> Tail:
        median = float(np.median(scores))
        above = [min(score - median, MOST) for score in scores if score > median]
        weight = PRIOR + len(above)
        return cls(median, (PRIOR * shipped["scale"] + sum(above)) / weight, weight, 0.5 * min(1.0, length))

    def threshold(self) -> float:
        """The score that one stranger in a hundred exceeds, the scale being no surer than ``weight`` pieces make it."""
        surprise = max(0.0, math.log(self.share / FALSE_ALARMS))
        return self.median + self.scale * self.weight * math.expm1(surprise / self.weight)

    def chance(self, score: float) -> tuple[float, float, float]:
        """As that of a `PassageTest`: the mean over what the scale may be (Lomax), and the interval."""
        from scipy.stats import gamma

        excess = max(0.0, score - self.median) / self.scale
        low, high = np.exp(-excess * gamma.ppf((0.975, 0.025), self.weight) / self.weight)
        low, high = self.share * low, self.share * high
        return self.share * (1 + excess / self.weight) ** -self.weight, low, high


def passage_test(index: NoveltyIndex, seconds: float, shipped: dict | None = None) -> PassageTest:
    """The test of a recording of ``seconds``: by the collection's base rate if it has enough pieces, else by the
    background, or the tail of its own pieces where that is higher. ``shipped`` is another background to judge by.
    """
    shipped, base_rate = shipped or background(), index.about["base_rate"]
    lengths = units(np.bincount(index.piece_of, index.n_frames) / FRAMES_PER_S, shipped)
    comparisons = float(units(seconds, shipped) * lengths.sum())
    if len(lengths) >= ENOUGH_PIECES:
        return PassageTest("base rate", base_rate["score_99"], comparisons, None)
    often = comparisons * shipped["rate"] / -math.log1p(-FALSE_ALARMS)
    threshold = shipped["level"] + shipped["scale"] * max(0.0, math.log(often))
    scores = base_rate.get("piece_scores")  # indices of before have none
    own = Tail.of(scores, shipped, float(units(seconds, shipped) / lengths.mean())) if scores else None
    if own and own.threshold() > threshold:
        return PassageTest("collection", own.threshold(), comparisons, own)
    return PassageTest("background", threshold, comparisons, own)
