"""The context of a window of a recording that is edited: what stays around its holes, and what is to be played in them.

    window, its latents, which of their frames stay  ->  channels (1, C + 1 + K, T/f, F/f) of kind ``hole``
    and a `Heard` that begins with the first hole    ->  the same with its kinds, inside the holes only

What is to be played is mixed with what stays before both are encoded, as for training.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from musicldm.editing.windows import Window
from musicldm.models.context import HOLE, ContextLayout, context_channels
from musicldm.pipelines.contexts import Encode, Heard
from vocoder import MelConfig


class Surroundings(NamedTuple):
    """A window of a recording as a model hears it."""

    window: Window
    waveform: Tensor  # (L,) or (A, L) at the model's rate, holes filled
    latents: Tensor  # (1, C, T/f, F/f) of that
    rate: int  # of the recording, in Hz, in whose samples the window is
    first: int  # sample of the recording with which what is heard begins


def window_context(
    around: Surroundings, heard: Heard | None, layout: ContextLayout, mel: MelConfig, encode: Encode
) -> Tensor:
    """Channels (1, C + 1 + K, T/f, F/f) of what is given ``around`` the holes, if the model knows that, and in them.

    ``encode`` makes scaled latents of (waveform, rate).
    """
    n_frames, latents = around.latents.shape[2], around.latents
    new = torch.from_numpy(around.window.mask) > 0
    kept = (~new).to(latents) if HOLE in layout.kinds else None
    frames: dict[str, Tensor] = {}
    if heard is not None:
        inside = _holes(around, mel)
        sound = around.waveform * ~inside if kept is not None else torch.zeros_like(around.waveform)
        at = round((around.first - around.window.start) * mel.sample_rate / around.rate)  # where it begins
        n_samples = sound.shape[-1]
        centres = (torch.arange(n_frames) + 0.5) * (n_samples / n_frames)
        for part in heard.parts:
            if part.sound is None:
                raise ValueError("what is to be played in a hole must be a sketch or audio, not latents")
            length = part.sound.shape[-1]
            begin, end = min(max(0, at), n_samples), max(0, min(n_samples, at + length))
            if begin < end:
                sound[..., begin:end] += part.sound[0][..., begin - at : end - at] * inside[begin:end]
            where = new & (centres >= at) & (centres < at + length)
            for kind in part.kinds:
                frames[kind] = torch.maximum(frames.get(kind, torch.zeros(n_frames)), where.float())
        latents = encode(sound[None], mel.sample_rate)
    return context_channels(layout, latents, {kind: where.to(latents) for kind, where in frames.items()}, kept)


def _holes(around: Surroundings, mel: MelConfig) -> Tensor:
    """Which of the model's samples of a window lie in holes, bool (L,)."""
    inside = torch.zeros(around.waveform.shape[-1], dtype=torch.bool)
    for hole in around.window.holes:
        start, stop = (round((edge - around.window.start) * mel.sample_rate / around.rate) for edge in hole)
        inside[max(0, start) : max(0, stop)] = True
    return inside
