"""Joins new sound to a recording, inside the region that is replaced.

what a model made in a window  ->  the recording's levels, rate and channels        (`levels`)
                               ->  between kept parts: phases matched near the seams, crossfade from old to new sound
                               ->  at an end of the recording: crossfade from its linear prediction to the new sound
                               ->  `Patch` for the region, times of its seams
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import soxr
from scipy.signal import istft, stft

from musicldm.editing.extrapolation import extrapolate
from musicldm.editing.levels import levelled, limited, placed
from musicldm.editing.patches import Patch
from musicldm.editing.source import Source

CROSSFADE_S = 0.04
PHASE_FRAME_S = 0.064  # frame of the spectrum for comparing phases
RETURN_S = 0.12  # time after the crossfade in which the phase correction fades out
BAND_FRAME_S = 0.016  # frame of the spectrum for keeping a crossfade's power
N_BANDS = 16
CONTINUED_S = 0.03  # length of the linear prediction at an end of the recording
STEEPNESS = 6  # exponent of the cosine that fades the prediction, which is accurate for milliseconds only
MOST_CHANGE = 2.0  # largest factor of a band's amplitude in a crossfade
TAPER = 0.15  # share of a crossfade, at either end, in which that factor fades in and out
ATTACK = 4.0  # ratio of energies at which a note of the new sound begins
ATTACK_BLOCK_S, ATTACK_PAST_S = 0.004, 0.03
TAIL_S = 0.1  # old sound that is needed beyond a seam


class Join(NamedTuple):
    """A region that is ready to be inserted."""

    patch: Patch
    seams_s: list[float]  # times of the seams with kept sound, in seconds of the source


class New(NamedTuple):
    """Sound that a model made."""

    waveform: np.ndarray  # (n,) or (A', n)
    rate: int  # Hz
    start: int  # its first sample, counted in the source; may be negative


class _Frame(NamedTuple):
    """The part of the source in which one region is joined; positions count from its beginning."""

    begin: int  # sample of the source
    old: np.ndarray  # (A, m), continued beyond the ends of the source where the region needs it
    there: tuple[int, int]  # the samples that belong to the source
    region: tuple[int, int]
    rate: int


def join(source: Source, region: tuple[int, int], new: New, crossfade_s: float = CROSSFADE_S) -> Join:
    """Convert ``new`` to the rate, channels and levels of ``source``, and join it to the source inside ``region``.

    Args:
        source: the recording.
        region: samples ``[start, stop)`` of the source; it may reach beyond its ends.
        new: covers at least the region. Its sound beside the region, where the source is kept, determines its level.
        crossfade_s: length of each crossfade between kept parts; at most half of a region with two seams, or all of a
            region with one. At an end of the source it is `CONTINUED_S`.

    Raises:
        ValueError: if the region does not touch the source, or ``new`` does not cover it or is not finite.
    """
    waveform = np.atleast_2d(np.asarray(new.waveform, dtype=float))
    end = new.start + round(waveform.shape[1] * source.rate / new.rate)
    _check(source, region, (new.start, end), waveform)
    start, stop = region
    frame = _frame(source, region, (new.start, end))
    waveform = _with_level(waveform, frame, new)
    made = np.zeros((len(waveform), frame.old.shape[1]))
    if new.rate != source.rate:
        waveform = soxr.resample(waveform.T, new.rate, source.rate, quality="VHQ").T
    at = new.start - frame.begin
    n = min(waveform.shape[1], made.shape[1] - at)
    made[:, at : at + n] = waveform[:, :n]
    beside = _beside(frame)
    made = limited(placed(made, beside), beside, source.rate)

    seams = (start > 0, stop < source.length)
    room = (stop - start) // max(1, sum(seams))  # samples for each seam
    fade = min(round(crossfade_s * source.rate), room)
    first, last = frame.region
    heard = start - new.start  # samples before the region that the model made
    in_hole = first + fade <= frame.there[1], last - fade >= frame.there[0]  # where an old sound lay
    go_on = min(round(CONTINUED_S * source.rate), room)
    if seams[0] and in_hole[0]:
        made = with_phases(made, frame.old, first, (fade, room), source.rate)
    if seams[1] and in_hole[1]:
        made = _backwards(with_phases, made, frame.old, last, (fade, room), source.rate)
    if seams[0] and in_hole[0]:
        attack = attack_in(made, frame.old, first, min(heard, round(ATTACK_PAST_S * source.rate)), (fade, source.rate))
        made = crossfaded(made, frame.old, first, (fade, attack), source.rate)
    elif seams[0]:
        made = continued(made, frame.old, first, go_on)
    if seams[1] and in_hole[1]:
        made = _backwards(crossfaded, made, frame.old, last, (fade, fade), source.rate)
    elif seams[1]:
        made = _backwards(continued, made, frame.old, last, go_on)
    patch = Patch(start, stop, np.ascontiguousarray(made[:, first:last]))
    return Join(patch, [at / source.rate for at, met in zip(region, seams, strict=True) if met])


def _check(source: Source, region: tuple[int, int], made: tuple[int, int], waveform: np.ndarray) -> None:
    start, stop = region
    if not (start < stop and start <= source.length and stop >= 0):
        raise ValueError(f"the region of samples {start} to {stop} must touch {source.name}, of 0 to {source.length}")
    if not np.isfinite(waveform).all():
        raise ValueError("the model's output holds NaN or infinity; try another seed, or dtype float32")
    if not (made[0] - 1 <= start and stop <= made[1] + 1):  # windows of the model's latent frames are rounded
        raise ValueError(f"the model's output, samples {made[0]} to {made[1]}, does not cover {start} to {stop}")


def _frame(source: Source, region: tuple[int, int], made: tuple[int, int]) -> _Frame:
    """The part of ``source`` around ``region`` and around ``made``, the samples that the model made."""
    tail = round(TAIL_S * source.rate)
    begin, end = min(made[0], region[0] - tail), max(made[1], region[1] + tail)
    low, high = max(0, begin), min(source.length, end)
    old = np.zeros((source.channels, end - begin))
    kept = source.read(low, high)
    old[:, low - begin : high - begin] = kept
    if high < region[0] + tail:
        after = old[:, high - begin :]
        after[:, :tail] = extrapolate(kept, min(tail, after.shape[1]), source.rate)
    if low > region[1] - tail:
        n = min(tail, low - begin)
        old[:, low - begin - n : low - begin] = extrapolate(kept[:, ::-1], n, source.rate)[:, ::-1]
    inside = region[0] - begin, region[1] - begin
    return _Frame(begin, old, (low - begin, high - begin), inside, source.rate)


def _beside(frame: _Frame) -> np.ndarray:
    """The kept samples of ``frame`` beside its region, (A, n)."""
    (low, high), (first, last) = frame.there, frame.region
    return np.concatenate([frame.old[:, low : max(low, first)], frame.old[:, min(high, last) : high]], axis=1)


def _with_level(waveform: np.ndarray, frame: _Frame, new: New) -> np.ndarray:
    """``waveform (A', n)`` of ``new``, with the levels of the kept sound beside the region."""
    at = new.start - frame.begin
    ratio = new.rate / frame.rate
    mean = frame.old[:, at:].mean(axis=0)
    mean = soxr.resample(mean, frame.rate, new.rate, quality="VHQ") if ratio != 1 else mean
    old = np.zeros(waveform.shape[1])
    n = min(len(old), len(mean))
    old[:n] = mean[:n]
    start, stop, low, high = (round((place - at) * ratio) for place in (*frame.region, *frame.there))
    return levelled(waveform, old, (start, stop), (max(0, low), min(len(old), high)), new.rate)


def _backwards(work, made: np.ndarray, old: np.ndarray, at: int, *rest) -> np.ndarray:
    """Apply ``work`` in reversed time, so that the seam at the end of a region is treated like one at its beginning."""
    return work(made[:, ::-1], old[:, ::-1], made.shape[1] - at, *rest)[:, ::-1]


def continued(made: np.ndarray, old: np.ndarray, at: int, fade: int) -> np.ndarray:
    """``made (A, m)`` with a crossfade of ``fade`` samples from the predicted ``old (A, m)``, beginning at ``at``.

    The old sound falls steeply and the new one rises as fast, with a constant sum of powers: the prediction is audible
    only for some milliseconds, in which it is accurate.
    """
    falls = np.cos(np.pi / 2 * (np.arange(fade) + 0.5) / max(1, fade)) ** STEEPNESS
    inside = slice(at, at + fade)
    result = made.copy()
    result[:, inside] = old[:, inside] * falls + made[:, inside] * np.sqrt(1 - falls**2)
    return result


def with_phases(made: np.ndarray, old: np.ndarray, at: int, spread: tuple[int, int], rate: int) -> np.ndarray:
    """``made (A, m)`` with the phases of ``old (A, m)`` in the crossfade that begins at the sample ``at``.

    Around each peak of the spectrum in the middle of the crossfade, the phase is shifted by the phase difference of the
    two sounds (means of their channels). The shift then fades out, so that partials do not cancel in the crossfade.

    Args:
        made: the new sound.
        old: the old sound.
        at: first sample of the crossfade.
        spread: length of the crossfade, and of the part that may be changed, in samples.
        rate: in Hz.
    """
    fade, room = spread
    n = 2 ** round(np.log2(PHASE_FRAME_S * rate))
    back = min(round(RETURN_S * rate), room - fade)
    middle = at + fade // 2
    if not fade or back < n // 4 or middle < n // 2 or middle + n // 2 > old.shape[1]:
        return made
    window = np.hanning(n + 1)[:-1]
    stretch = slice(middle - n // 2, middle + n // 2)
    ours, theirs = (np.fft.rfft(sound[:, stretch].mean(axis=0) * window) for sound in (made, old))
    turn = np.exp(1j * peak_phases(theirs * np.conj(ours)))

    low, high = max(0, at - 2 * n), min(made.shape[1], at + fade + back + 2 * n)
    hop = n // 8
    options = {"window": window, "nperseg": n, "noverlap": n - hop}
    _, _, spectrum = stft(made[:, low:high], **options)  # (A, K, T)
    times = low + np.arange(spectrum.shape[-1]) * hop
    share = np.clip(1 - (times - at - fade) / back, 0, 1)
    share = 0.5 - 0.5 * np.cos(np.pi * share)
    _, turned = istft(spectrum * turn[:, None] ** share, **options)
    result = made.copy()
    result[:, at : high - n] = turned[:, at - low : high - n - low]
    return result


def peak_phases(cross: np.ndarray) -> np.ndarray:
    """The phase (K,) of the cross spectrum ``cross (K,)`` around each of its peaks: one for all bins up to the dips."""
    size = np.abs(cross)
    peaks: list[int] = (1 + np.flatnonzero((size[1:-1] > size[:-2]) & (size[1:-1] >= size[2:]))).tolist()
    if not peaks:
        return np.zeros(len(cross))
    dips = [a + int(np.argmin(size[a : b + 1])) for a, b in itertools.pairwise(peaks)]
    edges: list[int] = [0, *dips, len(cross)]
    return np.concatenate([np.full(b - a, np.angle(cross[a:b].sum())) for a, b in itertools.pairwise(edges)])


def attack_in(made: np.ndarray, old: np.ndarray, at: int, past: int, fade_and_rate: tuple[int, int]) -> int:
    """Samples from ``at`` to the first attack in ``made (A, m)``, at most the length of the crossfade.

    An attack is a block of 4 ms with four times the energy of the ``past`` samples before it, and twice the energy of
    ``old (A, m)`` in the same block.
    """
    fade, rate = fade_and_rate
    block = max(1, round(ATTACK_BLOCK_S * rate))
    if past < 2 * block:
        return fade
    energy, theirs = (np.square(sound[:, : at + fade + block]).mean(axis=0) for sound in (made, old))
    for begin in range(at, at + fade, block):
        now = energy[begin : begin + block].mean()
        if now > max(ATTACK * energy[begin - past : begin].mean(), 2 * theirs[begin : begin + block].mean()):
            return max(begin - at, min(fade, block // 2))
    return fade


def crossfaded(made: np.ndarray, old: np.ndarray, at: int, lengths: tuple[int, int], rate: int) -> np.ndarray:
    """``made (A, m)`` with a crossfade from ``old (A, m)`` that begins at the sample ``at``.

    The gains have equal power (cosine and sine). Correlated sounds would be too loud and opposed sounds too soft, so
    each band is then scaled to the power of uncorrelated sounds.

    Args:
        made: the new sound.
        old: the old sound.
        at: first sample of the crossfade.
        lengths: samples of the fade-out of the old sound, and of the fade-in of the new one, at most as many.
        rate: in Hz.
    """
    fade, rise = lengths
    if not fade:
        return made
    n = max(8, 2 ** round(np.log2(BAND_FRAME_S * rate)))
    quarter = np.pi / 2 * (np.arange(fade) + 0.5)
    low, high = max(0, at - 2 * n), min(made.shape[1], at + fade + 2 * n)
    before, after = at - low, high - at - fade
    falls = np.concatenate([np.ones(before), np.cos(quarter / fade), np.zeros(after)])
    rises = np.concatenate([np.zeros(before), np.sin(np.minimum(quarter / rise, np.pi / 2)), np.ones(after)])
    both = old[:, low:high] * falls, made[:, low:high] * rises
    plain = both[0] + both[1]
    options = {"window": np.hanning(n + 1)[:-1], "nperseg": n, "noverlap": n - n // 4}
    spectra = [stft(part, **options)[2] for part in both]  # (A, K, T) each
    total = spectra[0] + spectra[1]
    edges = np.unique(np.concatenate([[0], np.geomspace(2, total.shape[1], N_BANDS).round().astype(int)]))
    wanted = np.add.reduceat(np.abs(spectra[0]) ** 2 + np.abs(spectra[1]) ** 2, edges[:-1], axis=1)
    found = np.add.reduceat(np.abs(total) ** 2, edges[:-1], axis=1)
    gains = np.sqrt(wanted / np.maximum(found, 1e-30)).clip(1 / MOST_CHANGE, MOST_CHANGE)
    _, even = istft(total * np.repeat(gains, np.diff(edges), axis=1), **options)
    inside = slice(before, before + fade)
    ramp = np.arange(1, fade + 1) / max(1.0, TAPER * fade)
    share = np.minimum(1, np.minimum(ramp, ramp[::-1]))
    result = made.copy()
    result[:, at : at + fade] = plain[:, inside] + (even[:, : plain.shape[1]] - plain)[:, inside] * share
    return result
