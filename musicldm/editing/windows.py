"""What a model sees of a recording, and what of that it makes new.

regions in samples of the source  ->  `plan_windows`  ->  windows of whole latent frames, with a mask
window                            ->  `read_window`   ->  waveform (L,) or (A, L) at the model's rate, holes filled

A window begins where a region's border falls on the border of two latent frames, so that what is new begins where the
region does. Where a region lies, the model hears the sound around it played backwards, and never what lay there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr

from musicldm.editing.source import Source
from vocoder import MelConfig

CONTEXT_S = 2.0  # of kept sound to either side of a region, where there is as much
BLEND_S = 0.02  # in which sound from the left and from the right of a hole, played backwards, are blended


@dataclass(frozen=True)
class Window:
    """A stretch of the source that the model works on at once.

    Attributes:
        start: first sample in the source; below 0 before it.
        stop: last sample + 1, rounded.
        regions: samples ``(start, stop)`` of the source that are to be replaced by what is made in this window.
        holes: those of all regions, in this window or others, that it touches: what the model must not hear.
        mask: (N,) float32, a value for each latent frame: 1 is made new, 0 is kept.
        n_samples: of the model's waveform, whole latent frames.
    """

    start: int
    stop: int
    regions: tuple[tuple[int, int], ...]
    holes: tuple[tuple[int, int], ...]
    mask: np.ndarray
    n_samples: int

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The stretches ``[first, last)`` of latent frames that are made new."""
        edges = np.diff(np.concatenate([[0], self.mask > 0, [0]]).astype(int))
        return list(zip(np.flatnonzero(edges > 0).tolist(), np.flatnonzero(edges < 0).tolist(), strict=True))


def plan_windows(
    source: Source,
    regions: Sequence[tuple[int, int]],
    mel: MelConfig,
    factor: int,
    length_s: float | None = None,
    context_s: float = CONTEXT_S,
) -> list[Window]:
    """Windows in which a model makes ``regions`` of ``source`` new, in order.

    Regions that are near each other share a window. A window is as long as ``length_s``, or longer if its regions and
    ``context_s`` of kept sound to either side need it, or shorter if the source is.

    Args:
        regions: samples ``(start, stop)`` of the source in order and apart (`check_regions`, `to_samples`).
        mel: the model's spectrogram.
        factor: mel frames for each latent frame.
        length_s: the clips' that the model was trained with, unless given.

    Raises:
        ValueError: no whole latent frame is kept in one of the windows.
    """
    length_s = mel.clip_s if length_s is None else length_s
    latent = source.rate * mel.hop_length * factor / mel.sample_rate  # samples of the source
    context, length = math.ceil(context_s * source.rate / latent), round(length_s * source.rate / latent)
    groups: list[list[tuple[int, int]]] = []
    for region in regions:
        if groups:
            span = (region[1] - groups[-1][0][0]) / latent
            if span + 2 * context <= length or region[0] - groups[-1][-1][1] < context * latent:
                groups[-1].append(region)
                continue
        groups.append([region])
    return [_window(source, group, regions, latent, (context, length), mel.hop_length * factor) for group in groups]


def _window(
    source: Source,
    group: list[tuple[int, int]],
    regions: Sequence[tuple[int, int]],
    latent: float,
    sizes: tuple[int, int],
    hop: int,
) -> Window:
    """The window for ``group``; ``sizes`` are those of context and window in latent frames of ``latent`` samples."""
    context, length = sizes
    start, stop = float(group[0][0]), float(group[-1][1])
    needed = _ceil((stop - start) / latent, latent)
    if start <= 0 and stop < source.length:  # the only seam is at the end
        start = stop - needed * latent
    else:
        stop = start + needed * latent
    before, after = int(max(0, start) / latent), int(max(0, source.length - stop) / latent)  # whole frames to hear
    spare = max(length - needed, 2 * context)
    left = min(before, max(spare // 2, spare - after))
    right = min(after, spare - left)
    begin = round(start - left * latent)
    n = needed + left + right
    end = round(begin + n * latent)
    holes = tuple(hole for hole in regions if hole[0] < end and hole[1] > begin)
    mask = np.zeros(n, np.float32)
    for hole in holes:
        first, last = (hole[0] - begin) / latent, (hole[1] - begin) / latent
        mask[max(0, _floor(first, latent)) : _ceil(last, latent)] = 1
    if mask.all():
        raise ValueError(
            f"{source.name} keeps less than the {latent / source.rate:.3f} s beside the region that the model needs to "
            "hear; choose a smaller region"
        )
    return Window(begin, end, tuple(group), holes, mask, n * hop)


def _floor(value: float, latent: float) -> int:
    """``value`` latent frames rounded down, less than a sample above a whole number counting as that."""
    return math.floor(value + 1 / latent)


def _ceil(value: float, latent: float) -> int:
    return math.ceil(value - 1 / latent)


def read_window(source: Source, window: Window, mel: MelConfig) -> np.ndarray:
    """What the model hears of ``window``: (L,) float32 for mono models, else (A, L), L being `Window.n_samples`."""
    start, stop = max(0, window.start), min(source.length, window.stop)
    heard = source.read(start, stop)
    n_channels = mel.audio_channels
    if n_channels == 1 or len(heard) > n_channels:
        heard = heard.mean(axis=0, keepdims=True)
    heard = np.broadcast_to(heard, (n_channels, heard.shape[1]))
    padded = np.zeros((n_channels, window.stop - window.start))
    padded[:, start - window.start : stop - window.start] = heard
    for hole in window.holes:
        first, last = max(0, hole[0] - window.start), min(padded.shape[1], hole[1] - window.start)
        around = (max(0, -window.start), padded.shape[1] - max(0, window.stop - source.length))
        _fill(padded, first, last, around, _neighbours(window, hole), round(BLEND_S * source.rate))
    if source.rate != mel.sample_rate:
        padded = soxr.resample(padded.T, source.rate, mel.sample_rate, quality="VHQ").T
    fitted = np.zeros((n_channels, window.n_samples), np.float32)
    n = min(window.n_samples, padded.shape[1])
    fitted[:, :n] = padded[:, :n]
    return fitted[0] if n_channels == 1 else fitted


def _neighbours(window: Window, hole: tuple[int, int]) -> tuple[int, int]:
    """Where, in samples of the window, the holes before and after ``hole`` end and begin."""
    before = max((other[1] for other in window.holes if other[1] <= hole[0]), default=window.start)
    after = min((other[0] for other in window.holes if other[0] >= hole[1]), default=window.stop)
    return max(before, window.start) - window.start, min(after, window.stop) - window.start


def _fill(
    samples: np.ndarray, first: int, last: int, around: tuple[int, int], neighbours: tuple[int, int], blend: int
) -> None:
    """Replace ``samples[:, first:last]`` by what lies to its left and right, played backwards from its borders.

    Samples are only taken from within ``around``, where the source is, and between ``neighbours``.
    """
    n = last - first
    before = samples[:, max(around[0], neighbours[0]) : first]
    after = samples[:, last : min(around[1], neighbours[1])]
    left = _backwards(before[:, ::-1], n)
    right = _backwards(after, n)[:, ::-1]
    if not before.shape[1] or not after.shape[1]:
        samples[:, first:last] = left + right  # one of them is silence
        return
    share = np.clip((np.arange(n) - (n - 1) / 2) / max(1, min(blend, n)) + 0.5, 0, 1) * np.pi / 2
    samples[:, first:last] = left * np.cos(share) + right * np.sin(share)


def _backwards(samples: np.ndarray, n: int) -> np.ndarray:
    """``n`` samples: ``samples (A, m)``, then back, then forth again and so on; silence if there are none."""
    m = samples.shape[1]
    if not m:
        return np.zeros((len(samples), n))
    steps = np.arange(n) % (2 * m)
    return samples[:, np.minimum(steps, 2 * m - 1 - steps)]
