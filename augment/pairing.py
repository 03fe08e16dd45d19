"""Selects pairs of recordings to mix, and aligns their beats.

    Recording, Recording  ->  same pulse? same metre?  ->  Alignment(a_start_s, b_start_s, speed)

Mode ``paper`` is what the authors of MusicLDM (Chen et al., 2023, https://arxiv.org/abs/2308.01546) do: groups of tempo
3 BPM wide, and one downbeat of each recording drawn at random. Mode ``synchronous`` limits the
error: the beats of both differ by at most ``TOLERANCE_S`` throughout the clip, after a change of the partner's speed by
a few percent at most. All functions depend on the analysis and a random generator only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MODES = ("paper", "synchronous")
TOLERANCE_S = 0.02  # largest distance of corresponding beats
SPEED_STEP = 0.001  # speeds are multiples of it, so that stretched recordings can be reused; +-2.6 ms in 10.24 s
MIN_CONFIDENCE = 0.3  # least confidence of the beats
BEATS_AT_LEAST = 4  # corresponding beats for fitting a line
PULSES = (1.0, 2.0, 0.5)  # beats of the partner for each beat of the anchor
GROUP_BPM = 3  # width of a tempo group in mode ``paper``


class Recording(NamedTuple):
    """The properties of a recording that pairing needs."""

    name: str
    group: str  # the same for versions of one piece, which are never mixed
    duration_s: float
    beats_s: np.ndarray  # (N,) ascending
    downbeats_s: np.ndarray  # (M,) a subset
    beats_per_bar: int  # 0: unknown
    tempo_bpm: float  # 0: no beats
    confidence: float  # 0 to 1
    key: str | None = None  # such as "C major"; None: unknown


class Alignment(NamedTuple):
    """An alignment: cut ``a`` at ``a_start_s`` and ``b``, played ``speed`` times as fast, at its ``b_start_s``."""

    a_start_s: float
    b_start_s: float  # in b's own time, before its speed changes
    speed: float  # 1: unchanged; 1.04: 4 % faster and shorter


def paper_tempo(beats_s: np.ndarray) -> int:
    """Tempo in whole BPM as the authors count it, 0 with fewer than two beats."""
    if len(beats_s) < 2:
        return 0
    return round(60 * (len(beats_s) - 1) / float(beats_s[-1] - beats_s[0]))


def paper_group(beats_s: np.ndarray) -> int:
    """The authors' tempo group: 3 BPM wide."""
    return paper_tempo(beats_s) // GROUP_BPM


def pulse_ratio(tempo_a: float, tempo_b: float) -> tuple[float, float]:
    """``(pulse, speed)``: beats of b for each beat of a (1, 2 or 0.5), and the factor of b's speed that aligns them.

    The pulse is the one whose speed is nearest to 1.
    """
    return min(((pulse, pulse * tempo_a / tempo_b) for pulse in PULSES), key=lambda pair: abs(math.log(pair[1])))


def compatible_keys(a: str | None, b: str | None) -> bool:
    """Whether two keys share all or all but one of their notes: the same, relative, or a fifth apart.

    An unknown key is compatible with none.
    """
    if a is None or b is None:
        return False
    distance = abs(_fifths(a) - _fifths(b)) % 12
    return min(distance, 12 - distance) <= 1


def _fifths(key: str) -> int:
    """Position of the scale of ``key`` ("F# minor") on the circle of fifths, C major and A minor being 0."""
    tonic, _, mode = key.strip().partition(" ")
    names = {"C": 0, "G": 1, "D": 2, "A": 3, "E": 4, "B": 5, "F": -1}
    if not tonic or tonic[0].upper() not in names or mode not in ("major", "minor"):
        raise ValueError(f"a key is written like 'C major' or 'F# minor', got {key!r}")
    accidentals = tonic[1:].replace("♯", "#").replace("♭", "b")
    if accidentals.strip("#b"):
        raise ValueError(f"a key is written like 'C major' or 'F# minor', got {key!r}")
    place = names[tonic[0].upper()] + 7 * (accidentals.count("#") - accidentals.count("b"))
    return (place - (3 if mode == "minor" else 0)) % 12


class Pairing:
    """Finds partners for each of ``recordings`` by tempo, without comparing all pairs.

    Args:
        recordings: with their beats.
        clip_s: length of the mixtures in seconds.
        mode: ``paper`` or ``synchronous``.
        max_stretch: largest relative change of a partner's speed (synchronous only).
        same_key: only partners in a compatible key (synchronous only).
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        clip_s: float,
        mode: str = "synchronous",
        max_stretch: float = 0.04,
        same_key: bool = False,
    ):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if not 0 <= max_stretch <= 0.04:
            raise ValueError(f"max_stretch must be from 0 to 0.04, since more is audible, got {max_stretch}")
        if not clip_s > 0:
            raise ValueError(f"clip_s must be positive, got {clip_s}")
        self.recordings, self.clip_s, self.mode = list(recordings), clip_s, mode
        self.max_stretch = max_stretch if mode == "synchronous" else 0.0
        self.same_key = same_key
        self.groups: dict[int, list[int]] = {}
        for i, recording in enumerate(self.recordings):
            self.groups.setdefault(paper_group(recording.beats_s), []).append(i)
        codes: dict[str, int] = {}
        self._piece = np.array([codes.setdefault(r.group, len(codes)) for r in self.recordings])
        self._metre = np.array([r.beats_per_bar for r in self.recordings])
        tempos = np.array([r.tempo_bpm if usable(r) else 0.0 for r in self.recordings])
        self._by_tempo = np.argsort(tempos, kind="stable")
        self._tempos = tempos[self._by_tempo]

    def candidates(self, index: int) -> np.ndarray:
        """Indices of the recordings whose tempo, metre, key and piece allow a mixture with recording ``index``.

        In mode ``paper``, the recording's whole tempo group, itself included.
        """
        anchor = self.recordings[index]
        if self.mode == "paper":
            return np.array(self.groups[paper_group(anchor.beats_s)])
        if not usable(anchor):
            return np.empty(0, dtype=int)
        reach = self.max_stretch + TOLERANCE_S / self.clip_s
        ranges = []
        for pulse in PULSES:
            wanted = pulse * anchor.tempo_bpm  # speed = wanted / tempo, from 1 - reach to 1 + reach
            first, last = np.searchsorted(self._tempos, [wanted / (1 + reach), wanted / (1 - reach)])
            ranges.append(self._by_tempo[first:last])
        found = np.sort(np.concatenate(ranges))
        found = found[(self._piece[found] != self._piece[index]) & (self._metre[found] == anchor.beats_per_bar)]
        if self.same_key:
            found = found[[compatible_keys(anchor.key, self.recordings[i].key) for i in found]]
        return found

    def draw(
        self, index: int, rng: np.random.Generator, within_s: tuple[float, float] = (0.0, math.inf), tries: int = 24
    ) -> tuple[int, Alignment] | None:
        """A partner for recording ``index``, uniform among those that fit, and how to align them.

        The anchor's cut lies between ``within_s`` (synchronous only). None if after ``tries`` candidates none fits.
        """
        candidates = self.candidates(index)
        if not len(candidates):
            return None
        if self.mode == "paper":
            partner = int(rng.choice(candidates))
            return partner, align_paper(self.recordings[index], self.recordings[partner], rng)
        for partner in rng.permutation(candidates)[:tries].tolist():
            fit = align_synchronous(
                self.recordings[index], self.recordings[partner], rng, self.clip_s, self.max_stretch, within_s
            )
            if fit is not None:
                return partner, fit
        return None


def usable(recording: Recording) -> bool:
    """Whether the beats of ``recording`` are known well enough for mode ``synchronous``."""
    return (
        recording.tempo_bpm > 0
        and recording.beats_per_bar > 0
        and len(recording.downbeats_s) > 0
        and recording.confidence >= MIN_CONFIDENCE
    )


def check_fit(a: Recording, b: Recording, max_stretch: float = 0.04) -> None:
    """Check that both have beats and the same metre, and that ``max_stretch`` can bring their tempi together.

    Raises:
        ValueError: if not; the message names the reason.
    """
    for recording in (a, b):
        if not usable(recording):
            raise ValueError(
                f"the beats of {recording.name} are not clear enough to mix by (confidence {recording.confidence:.2f}, "
                f"at least {MIN_CONFIDENCE} is needed): give another recording, or mode paper"
            )
    if a.beats_per_bar != b.beats_per_bar:
        raise ValueError(
            f"{a.name} has {a.beats_per_bar} beats to the bar, {b.name} {b.beats_per_bar}: "
            "give two of one metre, or mode paper"
        )
    _, speed = pulse_ratio(a.tempo_bpm, b.tempo_bpm)
    if abs(speed - 1) > max_stretch:
        raise ValueError(
            f"{a.name} has {a.tempo_bpm:.1f} BPM, {b.name} {b.tempo_bpm:.1f}: to meet, at once or at half or double "
            f"time, one would have to play {abs(speed - 1):.1%} {'faster' if speed > 1 else 'slower'}, and "
            f"{max_stretch:.0%} is the most; give two of more equal tempo, or mode paper"
        )


def align_paper(a: Recording, b: Recording, rng: np.random.Generator) -> Alignment:
    """One downbeat of each at random, never the last; both from their start unless both have more than one."""
    if len(a.downbeats_s) < 2 or len(b.downbeats_s) < 2:
        return Alignment(0.0, 0.0, 1.0)
    first, second = (float(r.downbeats_s[rng.integers(len(r.downbeats_s) - 1)]) for r in (a, b))
    return Alignment(first, second, 1.0)


def align_synchronous(
    a: Recording,
    b: Recording,
    rng: np.random.Generator,
    clip_s: float,
    max_stretch: float = 0.04,
    within_s: tuple[float, float] = (0.0, math.inf),
    tries: int = 6,
) -> Alignment | None:
    """A downbeat of each, drawn until the beats after them fit: differ by at most `TOLERANCE_S` within ``clip_s``.

    Downbeats with a whole clip after them are preferred; the anchor's lies between ``within_s``. None if none fits.
    """
    pulse, _ = pulse_ratio(a.tempo_bpm, b.tempo_bpm)
    downbeats_a = a.downbeats_s[(a.downbeats_s >= within_s[0]) & (a.downbeats_s < within_s[1])]
    starts_a = _with_room(downbeats_a, a.duration_s, clip_s)
    starts_b = _with_room(b.downbeats_s, b.duration_s, clip_s * (1 + max_stretch))
    if not len(starts_a) or not len(starts_b):
        return None
    for _ in range(min(tries, len(starts_a) * len(starts_b))):
        start_a, start_b = float(rng.choice(starts_a)), float(rng.choice(starts_b))
        fit = fit_beats(a.beats_s, b.beats_s, start_a, start_b, pulse, clip_s, max_stretch)
        if fit is not None:
            return fit
    return None


def _with_room(downbeats_s: np.ndarray, duration_s: float, clip_s: float) -> np.ndarray:
    """The downbeats after which a whole clip remains; else the first, if half a clip remains after it."""
    if len(with_room := downbeats_s[downbeats_s + clip_s <= duration_s]):
        return with_room
    first = downbeats_s[:1]
    return first[first + clip_s / 2 <= duration_s]


def fit_beats(
    beats_a: np.ndarray,
    beats_b: np.ndarray,
    start_a: float,
    start_b: float,
    pulse: float,
    clip_s: float,
    max_stretch: float,
) -> Alignment | None:
    """Speed and cut of b for which its beats (N,) from ``start_b`` on lie closest to a's (M,) from ``start_a`` on.

    Both starts are beats. None if a pair of beats within the clip remains further apart than `TOLERANCE_S`, or too few
    are common to both.
    """
    beats_a = beats_a[np.searchsorted(beats_a, start_a - 1e-6) :][:: 2 if pulse == 0.5 else 1]
    beats_b = beats_b[np.searchsorted(beats_b, start_b - 1e-6) :][:: 2 if pulse == 2.0 else 1]
    n = min(int(np.searchsorted(beats_a, start_a + clip_s)), len(beats_b))
    if n < BEATS_AT_LEAST:
        return None
    x, y = beats_a[:n] - start_a, beats_b[:n] - start_b
    deviation = x - x.mean()
    speed = float(deviation @ y / (deviation @ deviation)) if max_stretch else 1.0
    speed = 1.0 + SPEED_STEP * round(np.clip(speed - 1.0, -max_stretch, max_stretch) / SPEED_STEP)
    offset = float((y / speed - x).mean())  # how much later the beats of b come, in the clip's time
    if np.abs(y / speed - x - offset).max() > TOLERANCE_S:
        return None
    cut = start_b + offset * speed
    return Alignment(start_a, cut, speed) if cut >= 0 else Alignment(start_a - cut / speed, 0.0, speed)
