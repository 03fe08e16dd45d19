"""Latents longer than a network was trained on: overlapping windows of the trained length, denoised together.

    noisy latents (B, C, T, F)  -> windows (B, C, W, F), each with its own condition
                                -> UNet, a few at a time -> predictions, blended with smooth weights (B, C, T, F)

Memory does not grow with T, beside that of the latents, and work grows linearly. On a circle windows go round the end.

Bar-Tal et al. (2023), MultiDiffusion. https://arxiv.org/abs/2302.08113
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from musicldm.config.values import check_whole
from musicldm.sampling.condition import Condition, predict

OVERLAP = 0.25  # of neighbouring windows, as a share of their length; half was measured to be no better
WINDOWS_AT_ONCE = {"cpu": 4}  # windows times items in one call of the network; more gains nothing on a CPU
WINDOWS_AT_ONCE_ELSEWHERE = 16


@dataclass(frozen=True)
class Layout:
    """Windows over latents of ``n_frames``.

    Attributes:
        n_frames: of the latents, T.
        length: frames of each window, W, at most T.
        starts: the first frame of each of N windows, ascending.
        loop: whether frame 0 follows the last one: windows may then go round the end.
    """

    n_frames: int
    length: int
    starts: tuple[int, ...]
    loop: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether one window holds all frames."""
        return self.length == self.n_frames

    def frames(self, number: int) -> Tensor:
        """The frames (W,) of a window."""
        return (torch.arange(self.length) + self.starts[number]) % self.n_frames

    def weights(self) -> Tensor:
        """How much of each window's prediction counts, (N, W) in float64: of each frame the sum is 1."""
        taper = _taper(self.length)
        total = torch.zeros(self.n_frames, dtype=torch.float64)
        for i in range(len(self.starts)):
            total[self.frames(i)] += taper
        return torch.stack([taper / total[self.frames(i)] for i in range(len(self.starts))])

    def shares(self, borders: Sequence[float]) -> Tensor:
        """How much of each window lies in each section, (N, S) in float64, the middle counting most: rows of sum 1.

        ``borders`` are the S + 1 ends of the sections, in frames from 0 to T.
        """
        edges = torch.tensor(borders, dtype=torch.float64)
        first = torch.arange(self.n_frames, dtype=torch.float64)[:, None]
        inside = (torch.minimum(first + 1, edges[1:]) - torch.maximum(first, edges[:-1])).clamp(min=0)  # (T, S)
        mass = torch.stack([_taper(self.length) @ inside[self.frames(i)] for i in range(len(self.starts))])
        return mass / mass.sum(dim=1, keepdim=True)


def lay_out(n_frames: int, length: int, loop: bool = False, overlap: float = OVERLAP) -> Layout:
    """Windows of ``length`` frames over ``n_frames``, evenly spread, that overlap by at least the share ``overlap``.

    Raises:
        ValueError: for lengths below 1, or an overlap that is not from 0 to 0.9.
    """
    check_whole("n_frames", n_frames)
    check_whole("length", length)
    if not 0 <= overlap <= 0.9:
        raise ValueError(f"overlap must be a share of a window from 0 to 0.9, got {overlap}")
    if n_frames <= length:
        return Layout(n_frames, n_frames, (0,), loop)
    hop = max(1, math.floor(length * (1 - overlap)))
    if loop:
        n_windows = -(-n_frames // hop)
        starts = [i * n_frames // n_windows for i in range(n_windows)]
    else:
        n_steps = -(-(n_frames - length) // hop)
        starts = [i * (n_frames - length) // n_steps for i in range(n_steps + 1)]
    return Layout(n_frames, length, tuple(starts), loop)


def blend(embeddings: Tensor, shares: Tensor) -> Tensor:
    """Embeddings (N, D) between those of S sections, ``embeddings (S, D)``, by ``shares (N, S)``; of their length."""
    shares = shares.to(embeddings.dtype).to(embeddings.device)
    lengths = shares @ embeddings.norm(dim=1)
    return functional.normalize(shares @ embeddings, dim=1) * lengths[:, None]


def windows_at_once(device: str) -> int:
    """Windows times items in one call of the network on a ``device``, such as "cpu"."""
    return WINDOWS_AT_ONCE.get(device, WINDOWS_AT_ONCE_ELSEWHERE)


class Windows:
    """Takes the place of `musicldm.sampling.predict` in `musicldm.sampling.denoise` for latents of a layout.

    Args:
        layout: where the windows lie.
        embeddings: conditions (N, D), one for each window; by default each has that of its item.
        negatives: the same (N, D) for guidance.
        evaluate: what evaluates the network, with the arguments of `predict`.
        at_once: windows times items in one call of the network, that of `windows_at_once` by default.
    """

    def __init__(
        self,
        layout: Layout,
        embeddings: Tensor | None = None,
        negatives: Tensor | None = None,
        evaluate: Callable[..., Tensor] = predict,
        at_once: int | None = None,
    ):
        for name, rows in (("embeddings", embeddings), ("negatives", negatives)):
            if rows is not None and len(rows) != len(layout.starts):
                raise ValueError(f"{len(rows)} {name} for {len(layout.starts)} windows; give one for each")
        self.layout, self.evaluate, self.at_once = layout, evaluate, at_once
        self.rows = (negatives, embeddings)
        self.frames = torch.stack([layout.frames(i) for i in range(len(layout.starts))])  # (N, W)
        self.weights = layout.weights()  # (N, W)

    def __call__(
        self,
        unet: nn.Module,
        noisy: Tensor,
        time: Tensor,
        condition: Condition,
        guidance_scale: float | Tensor = 1.0,
        context_guidance_scale: float | Tensor = 1.0,
    ) -> Tensor:
        """The blended prediction for scaled ``noisy`` latents (B, C, T, F), of their shape and dtype."""
        if noisy.shape[2] != self.layout.n_frames:
            raise ValueError(f"windows over {self.layout.n_frames} frames cannot serve latents of {noisy.shape[2]}")
        if self.weights.device != noisy.device:  # once, in the first step
            self.frames = self.frames.to(noisy.device)
            self.weights = self.weights.to(noisy.dtype).to(noisy.device)
        n_items, n_windows, result = len(noisy), len(self.frames), torch.zeros_like(noisy)
        most = self.at_once or windows_at_once(noisy.device.type)
        n_calls = -(-n_windows // max(1, most // n_items))
        for first, end in pairwise(n_windows * i // n_calls for i in range(n_calls + 1)):
            parts = noisy[:, :, self.frames[first:end]].movedim(2, 1)  # (B, M, C, W, F)
            prediction = self.evaluate(
                unet,
                parts.flatten(0, 1),
                time.repeat_interleave(end - first) if time.ndim else time,
                self.condition_of(slice(first, end), condition, n_items),
                guidance_scale,
                context_guidance_scale,
            ).unflatten(0, (n_items, -1))
            for i in range(first, end):  # one by one: the same sum every time, on every device
                weights = self.weights[i, :, None].to(noisy.dtype)
                result[:, :, self.frames[i]] += weights * prediction[:, i - first]
        return result

    def condition_of(self, chosen: slice, condition: Condition, n_items: int) -> Condition:
        """The condition of M ``chosen`` windows of all items: B * M rows, or 2 B * M, with their part of a context."""
        n_windows = chosen.stop - chosen.start
        groups = condition.embedding.split(n_items)  # unconditional rows first, if there are any
        own = self.rows[-len(groups) :]
        rows = [
            group[:, None].expand(-1, n_windows, -1)
            if of_windows is None
            else of_windows[chosen].to(group).expand(n_items, -1, -1)
            for group, of_windows in zip(groups, own, strict=True)
        ]
        attention = condition.cross_attention_kwargs
        if attention and "grid" in attention:
            attention = attention | {"grid": (self.layout.length, *attention["grid"][1:])}
        context = condition.context
        if context is not None:
            context = context[:, :, self.frames[chosen]].movedim(2, 1).flatten(0, 1)
        embedding = torch.cat(rows).flatten(0, 1)
        return replace(condition, embedding=embedding, cross_attention_kwargs=attention, context=context)


def _taper(length: int) -> Tensor:
    """Weights (W,) of a window before they are normalised: largest in the middle, small at its ends, never 0."""
    return torch.hann_window(length + 2, periodic=False, dtype=torch.float64)[1:-1]
