"""Patches: new samples in place of old ones; everything outside a patch stays the same to the bit.

    `Source`, patches  ->  `apply`          ->  array of the source's kind of samples
    `Source`, patches  ->  `write_patched`  ->  file in the source's container, rate, channels and sample format

Positions count from the source's first sample; a patch with a negative start extends the result to the left.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from musicldm.editing.source import BITS, FLOATS, Source


@dataclass(frozen=True)
class Patch:
    """New ``samples (A, stop - start)``, -1 to 1, in place of those from ``start`` to before ``stop``.

    ``start`` below 0, or ``stop`` beyond the source's length, extend it to that side.
    """

    start: int
    stop: int
    samples: np.ndarray


class Piece(NamedTuple):
    """A stretch of the result."""

    start: int  # sample of the source
    stop: int
    patch: Patch | None  # the patch with its samples; None for samples of the source


def pieces(source: Source, patches: Sequence[Patch]) -> list[Piece]:
    """The result from beginning to end, as alternating kept and new parts.

    Raises:
        ValueError: if patches overlap, leave a gap at an end of the source, or their samples have a wrong shape.
    """
    result, at = [], 0
    ordered = sorted(patches, key=lambda patch: patch.start)
    for i, patch in enumerate(ordered):
        _check(source, patch)
        if i and patch.start < ordered[i - 1].stop:
            before = ordered[i - 1]
            raise ValueError(
                f"the patches of samples {before.start} to {before.stop} and {patch.start} to {patch.stop} overlap"
            )
        if at < patch.start:
            result.append(Piece(at, patch.start, None))
        result.append(Piece(patch.start, patch.stop, patch))
        at = patch.stop
    if at < source.length:
        result.append(Piece(at, source.length, None))
    return result


def _check(source: Source, patch: Patch) -> None:
    where = f"the patch of samples {patch.start} to {patch.stop}"
    if patch.start >= patch.stop:
        raise ValueError(f"{where} is empty or reversed")
    if patch.start > source.length or patch.stop < 0:
        raise ValueError(f"{where} does not touch {source.name}, which has samples 0 to {source.length}")
    expected = (source.channels, patch.stop - patch.start)
    if patch.samples.shape != expected:
        raise ValueError(f"{where} must have samples of shape {expected}, got {patch.samples.shape}")
    if not np.isfinite(patch.samples).all():
        raise ValueError(f"{where} holds NaN or infinity")


def seams(source: Source, patches: Sequence[Patch]) -> list[float]:
    """Where kept and new samples meet, in seconds from the beginning of the result, ascending."""
    parts = pieces(source, patches)
    met = [b.start for a, b in itertools.pairwise(parts) if (a.patch is None) != (b.patch is None)]
    return [(at - parts[0].start) / source.rate for at in met]


def apply(source: Source, patches: Sequence[Patch]) -> np.ndarray:
    """``source`` with ``patches``: (A, L), or (L,) for a source of that shape, in `Source.dtype`.

    Files give (A, L). Whole numbers are those that soundfile reads, 24-bit samples being in the upper bits.
    """
    made = []
    for piece in pieces(source, patches):
        blocks = source.blocks(piece.start, piece.stop) if piece.patch is None else [piece.patch.samples]
        made += [as_kind(quantized(block, source.subtype), source.dtype) for block in blocks]
    whole = np.concatenate(made, axis=1)
    return whole[0] if source.flat else whole


def blocks(source: Source, patches: Sequence[Patch], subtype: str) -> Iterator[np.ndarray]:
    """``source`` with ``patches`` as blocks (n, A) that soundfile writes as ``subtype`` without further rounding."""
    kind = FLOATS.get(subtype, np.int32)
    for piece in pieces(source, patches):
        for block in source.blocks(piece.start, piece.stop) if piece.patch is None else [piece.patch.samples]:
            yield as_kind(quantized(block, subtype), np.dtype(kind)).T


def quantized(samples: np.ndarray, subtype: str) -> np.ndarray:
    """``samples``, float64, rounded to ``subtype`` and limited to its full scale; those that fit it are unchanged."""
    if subtype in FLOATS:
        return samples
    scale = 2.0 ** (BITS[subtype] - 1)
    return np.clip(np.round(samples * scale), -scale, scale - 1) / scale


def as_kind(samples: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``samples``, float64 from -1 to 1, as ``dtype``, whose whole numbers span its full scale."""
    if dtype.kind == "f":
        return samples.astype(dtype)
    return np.round(samples * 2.0 ** (8 * dtype.itemsize - 1)).astype(dtype)
