"""Resampling of tensors, with the filter that CLAP's audio went through."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

ZERO_CROSSINGS = 6  # of the resampler's sinc, to either side
ROLL_OFF = 0.99  # the resampler's cut-off, as a fraction of the lower Nyquist frequency


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """``waveform (..., L)`` at ``from_rate`` Hz brought to ``to_rate`` Hz: (..., ceil(L * to_rate / from_rate)).

    A sinc of six zero crossings to either side under a squared cosine, cut off at 0.99 of the lower Nyquist
    frequency: the resampling that CLAP's audio went through. Output n lies at input position n * from / to, of which
    only ``to`` / gcd different fractions exist (the phases); each has its own taps.
    """
    if from_rate != int(from_rate) or to_rate != int(to_rate) or min(from_rate, to_rate) < 1:
        raise ValueError(f"rates must be positive whole numbers of Hz, got {from_rate} and {to_rate}")
    if from_rate == to_rate:
        return waveform
    divisor = math.gcd(int(from_rate), int(to_rate))
    source, target = int(from_rate) // divisor, int(to_rate) // divisor
    cutoff = ROLL_OFF * min(source, target) / source  # of the input's Nyquist frequency
    reach = math.ceil(ZERO_CROSSINGS / cutoff)  # taps to either side
    offsets = torch.arange(-reach, reach + 2)  # taps relative to the input sample at or before the output's position

    fractions = torch.arange(target, dtype=torch.float64) * source % target / target
    distance = (offsets[:, None] - fractions) * cutoff  # (taps, phases) in zero crossings
    window = torch.cos(distance.clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS) * math.pi / (2 * ZERO_CROSSINGS)).square()
    taps = (torch.sinc(distance) * window * cutoff).to(waveform)

    n_out = -(-waveform.shape[-1] * target // source)
    outputs = torch.arange(n_out, device=waveform.device)
    before, phase = outputs * source // target, outputs % target
    padded = functional.pad(waveform, (reach, reach + 2))
    result = waveform.new_zeros(*waveform.shape[:-1], n_out)
    # one pass for each tap: a dense convolution would need target x source taps, gigabytes for coprime rates
    for offset, weights in zip(offsets.tolist(), taps, strict=True):
        result = result + weights[phase] * padded[..., before + (offset + reach)]
    return result
