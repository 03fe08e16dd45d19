"""Thresholds of passage scores. Small collections get them from a background of unrelated music.

``background.json`` holds measurements of `benchmarks.small_collections`: how often the best passage of two unrelated
recordings of 45 s exceeds a score, and by how much on average. The tail is exponential, as for maxima of many
comparisons (Coles, 2001, An Introduction to Statistical Modeling of Extreme Values). It also holds the same for
bootstrap samples of the recordings, which give confidence intervals.
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
ENOUGH_PIECES = 99  # pieces, or clips, from which a collection's own scores determine the 1 % quantile
PRIOR = 4  # weight of the background's scale, in pieces of the collection
MOST = 0.2  # limit of a piece's excess over the median score; more may be a copy within the collection
MOST_TIMES = 4.0  # the limit is at least this many mean excesses, estimated from the lower quarter
NEAREST = 1e-6  # distance below which two embeddings are the same


@functools.cache
def background() -> dict:
    """The background of the package: name, recordings, recording_s, growth, level, rate, scale and replicates."""
    return json.loads((Path(__file__).parent / "background.json").read_text(encoding="utf-8"))


def units(seconds: float | np.ndarray, shipped: dict) -> float | np.ndarray:
    """How many recordings of the background's length one of ``seconds`` counts for; fewer than its length suggests,
    because music repeats itself.
    """
    return (np.asarray(seconds) / shipped["recording_s"]) ** shipped["growth"]


def within(excess: np.ndarray, most: float) -> np.ndarray:
    """``excess (N,)`` over a median, clipped at ``most`` or at `MOST_TIMES` its mean, whichever is more.

    The mean is that of an exponential distribution with the same lower quarter, so that copies within the collection
    have no influence.
    """
    if not len(excess):
        return excess
    mean = np.quantile(excess, 0.25) / -math.log1p(-0.25)
    return np.minimum(excess, max(most, MOST_TIMES * mean))


class PassageTest(NamedTuple):
    """Significance of passage scores, for one recording and one collection."""

    basis: str  # background; collection, if its own pieces are more alike; or base rate, of a large collection
    threshold: float  # above which a passage is a copy
    comparisons: float  # pairs of recordings of the background's length
    own: Tail | None  # of a small collection

    def chance(self, score: float) -> tuple[float, float, float]:
        """Share of unrelated recordings that reach ``score``, with its 95 % interval."""
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
    """Exponential tail of the scores between the pieces of a collection, above their median."""

    median: float
    scale: float  # mean excess; that of the background where there are few
    weight: float  # number of pieces behind the estimate
    share: float  # of unrelated recordings of this length that exceed the median: half, or fewer for short ones

    @classmethod
    def of(cls, scores: list[float], shipped: dict, length: float) -> Tail:
        median = float(np.median(scores))
        above = within(np.array([score - median for score in scores if score > median]), MOST)
        weight = PRIOR + len(above)
        scale = (PRIOR * shipped["scale"] + float(above.sum())) / weight
        return cls(median, scale, weight, 0.5 * min(1.0, length))

    def threshold(self) -> float:
        """The score that 1 % of unrelated recordings exceed, given an uncertain scale from ``weight`` pieces."""
        surprise = max(0.0, math.log(self.share / FALSE_ALARMS))
        return self.median + self.scale * self.weight * math.expm1(surprise / self.weight)

    def chance(self, score: float) -> tuple[float, float, float]:
        """As `PassageTest.chance`: the mean over the uncertain scale (Lomax distribution), and the interval."""
        from scipy.stats import gamma

        excess = max(0.0, score - self.median) / self.scale
        low, high = np.exp(-excess * gamma.ppf((0.975, 0.025), self.weight) / self.weight)
        low, high = self.share * low, self.share * high
        return self.share * (1 + excess / self.weight) ** -self.weight, low, high


class SimilarityTest(NamedTuple):
    """The similarity that 1 % of clips (or windows) of unrelated music exceed."""

    threshold: float
    basis: str  # counted, from 99 values or more; or tail, from fewer
    false_alarms: tuple[float, float]  # the 95 % interval of their share at the threshold

    def record(self, name: str) -> dict:
        """For the base rate of an index."""
        told = {"99": self.threshold, "basis": self.basis, "false_alarm_interval": list(self.false_alarms)}
        return {f"{name}_{what}": value for what, value in told.items()}


def similarity_test(values: np.ndarray) -> SimilarityTest:
    """`SimilarityTest` from the cosine similarities ``values (N,)`` of clips to the nearest clip of another piece.

    With 99 finite values or more the quantile is counted. With fewer, an exponential tail is fitted to minus the
    logarithm of the distance: the probability of a nearest neighbour below distance x is about a power of x (Levina and
    Bickel, 2004, Maximum likelihood estimation of intrinsic dimension), whatever the CLAP.
    """
    from scipy.stats import beta

    count = len(values)
    if count >= ENOUGH_PIECES:
        low, high = beta.ppf((0.025, 0.975), FALSE_ALARMS * (count + 1), (1 - FALSE_ALARMS) * (count + 1))
        threshold = float(np.quantile(values, 1 - FALSE_ALARMS, method="weibull"))
        return SimilarityTest(threshold, "counted", (float(low), float(high)))
    nearness = -np.log(np.maximum(1 - np.asarray(values, np.float64), NEAREST))
    median = float(np.median(nearness))
    above = nearness[nearness > median] - median
    if not len(above):
        return SimilarityTest(float(np.max(values)), "tail", (0.0, 1.0))
    above = within(above, 0.0)
    tail = Tail(median, float(above.mean()), len(above), 0.5)
    _, low, high = tail.chance(tail.threshold())
    return SimilarityTest(-math.expm1(-tail.threshold()), "tail", (float(low), float(high)))


def passage_test(index: NoveltyIndex, seconds: float, shipped: dict | None = None) -> PassageTest:
    """The test for a recording of ``seconds``: by the collection's base rate if it has enough pieces; otherwise by the
    background, or by the tail of its own pieces if that gives a higher threshold. ``shipped`` replaces the background.
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
