"""Noise turned towards other noise: variations of a piece whose seed is known.

    noise of one seed, noise of another, share of a quarter turn  ->  normal noise between them

Share 0 is the first noise to the bit, share 1 the other. Samplers that add noise in each step draw it turned as well.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from musicldm.config.values import check_kind, check_number


def turn_noise(first: Tensor, other: Tensor, share: float) -> Tensor:
    """Independent normal noises of one shape as one such noise: cos(a) * first + sin(a) * other, a = share * pi / 2.

    Raises:
        ValueError: for a share outside of 0 to 1, or noises of two shapes.
    """
    check_number("share", share, 0, 1)
    for name, noise in (("first", first), ("other", other)):
        check_kind(name, noise, Tensor, "a tensor of noise")
    if first.shape != other.shape:
        raise ValueError(f"noises must be of one shape, got {tuple(first.shape)} and {tuple(other.shape)}")
    if share in (0, 1):
        return (other if share else first).clone()
    angle = share * math.pi / 2
    return math.cos(angle) * first + math.sin(angle) * other


class TurnedGenerator(Generator):
    """A generator for pipelines whose noise is that of ``first`` turned by ``share`` towards that of ``other``.

    Given as one of a call's ``generator`` list, it makes waveform i a variation of what ``first`` alone would make.
    Every draw takes from both generators, so that what they make is that of two calls. Both may be turned themselves.

    Raises:
        ValueError: for something else than generators of one kind of device, or a share outside of 0 to 1.
    """

    def __new__(cls, first: Generator, other: Generator, share: float) -> TurnedGenerator:
        for name, generator in (("first", first), ("other", other)):
            check_kind(name, generator, Generator, "a torch.Generator")
        return super().__new__(cls, first.device)

    def __init__(self, first: Generator, other: Generator, share: float):
        check_number("share", share, 0, 1)
        if first is other or first.device != other.device:
            raise ValueError("first and other must be two generators of one device")
        self.first, self.other, self.share = first, other, share


class LeaningGenerator(Generator):
    """A generator for pipelines whose first noise is that of ``first`` with ``lean`` added to it.

    ``lean`` (C, T, F) is what the first noise shall have in it, of a standard deviation well below 1. What is drawn
    later, by samplers that add noise in each step, has none.

    Raises:
        ValueError: for something else than a generator and a tensor.
    """

    def __new__(cls, first: Generator, lean: Tensor) -> LeaningGenerator:
        check_kind("first", first, Generator, "a torch.Generator")
        check_kind("lean", lean, Tensor, "a tensor")
        return super().__new__(cls, first.device)

    def __init__(self, first: Generator, lean: Tensor):
        self.first, self.lean = first, lean

    def leaning(self, noise: Tensor) -> Tensor:
        """``noise`` (1, C, T, F), with what is to be added the first time."""
        lean, self.lean = self.lean, None
        return noise if lean is None else noise + lean.to(noise)


class _Turning(TorchFunctionMode):
    """Inside, ``torch.randn`` of a `TurnedGenerator` turns, of a `LeaningGenerator` leans; on this thread alone."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if function is torch.randn and isinstance(generator, LeaningGenerator):
            return generator.leaning(
                self.__torch_function__(torch.randn, types, args, kwargs | {"generator": generator.first})
            )
        if function is torch.randn and isinstance(generator, TurnedGenerator):
            first, other = (
                self.__torch_function__(torch.randn, types, args, kwargs | {"generator": each})
                for each in (generator.first, generator.other)
            )
            return turn_noise(first, other, generator.share)
        return function(*args, **kwargs)


def turning(generator: Generator | list[Generator] | None) -> AbstractContextManager:
    """Where noise is drawn of ``generator``, which may be, or hold, some that turn or lean."""
    generators = generator if isinstance(generator, list) else [generator]
    special = any(isinstance(each, TurnedGenerator | LeaningGenerator) for each in generators)
    return _Turning() if special else nullcontext()
