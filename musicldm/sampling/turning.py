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


class _Turning(TorchFunctionMode):
    """Inside, ``torch.randn`` of a `TurnedGenerator` turns; on this thread alone."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if function is torch.randn and isinstance(generator, TurnedGenerator):
            first, other = (
                self.__torch_function__(torch.randn, types, args, kwargs | {"generator": each})
                for each in (generator.first, generator.other)
            )
            return turn_noise(first, other, generator.share)
        return function(*args, **kwargs)


def turning(generator: Generator | list[Generator] | None) -> AbstractContextManager:
    """Where noise is drawn of ``generator``, which may be, or hold, some that turn."""
    generators = generator if isinstance(generator, list) else [generator]
    return _Turning() if any(isinstance(each, TurnedGenerator) for each in generators) else nullcontext()
