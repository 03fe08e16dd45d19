"""Steering: while latents are denoised, their similarity to rejected draws is reduced.

    prediction (B, C, T, F) of the UNet -> estimate of x0 -> minus its component along rejected draws -> prediction

Similarity is computed in windows of 2 s. Its gradient with respect to the estimate is the rejected pattern itself, so
that a step needs no further evaluation of a network. After the dissimilarity guidance of Chen, Liu and Xu (2024),
Towards memorization-free diffusion models, https://arxiv.org/abs/2404.00922.

If a model can play nothing else, steering leaves a hum: the pitches of a rejected draw, held throughout. `is_hum`
detects it by `movement_db`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from musicldm.analysis.waveforms import SILENCE
from vocoder import MelConfig, log_mel_spectrogram

FLOOR_DB = 2.5  # movement that more than 99 % of stretches of 2 s of recordings and rendered scores exceed
RANGE_DB = 50.0  # range below the loudest point of the spectrogram
DB = 20 / np.log(10)  # in a natural logarithm of magnitudes


def movement_db(waveform: np.ndarray, sample_rate: int) -> float:
    """Movement of ``waveform (L,)``: standard deviation over time of the levels of its mel bands, in dB.

    The mean over bands that come within `RANGE_DB` of the loudest point, so that loudness and silent bands have no
    influence. 0 for silence.
    """
    peak = np.abs(waveform).max(initial=0)
    if peak < SILENCE:
        return 0.0
    n_fft = 2 ** round(np.log2(0.064 * sample_rate))
    config = MelConfig(
        sample_rate=sample_rate,
        n_fft=n_fft,
        hop_length=max(1, round(sample_rate / 50)),
        f_max=min(8000.0, sample_rate / 2),
        floor=1e-9,
    )
    samples = torch.from_numpy(np.ascontiguousarray(waveform / peak, np.float32))
    samples = functional.pad(samples, (0, max(0, n_fft // 2 + 1 - len(samples))))
    level = DB * log_mel_spectrogram(samples[None], config)[0].numpy()  # (T, F)
    level = level.clip(min=level.max() - RANGE_DB)
    return float(level.std(axis=0)[level.max(axis=0) > level.min()].mean())


def is_hum(movement: float, unsteered: list[float]) -> bool:
    """Whether a steered draw is a hum: its ``movement`` in dB is below `FLOOR_DB`, and that of no unsteered draw was.

    So prompts whose music holds its notes without steering, such as drones, are not rejected.
    """
    return movement < FLOOR_DB <= min(unsteered)


class Steering:
    """Corrects the predictions of a run of `musicldm.sampling.denoising.denoise`, as its ``correct``.

    Args:
        scheduler: of diffusers' Karras family; gives the kind of prediction and the noise level of each step.
        window: latent frames over which similarity is computed.
        strength: 1 removes the whole component, more makes it negative; one value, or a list with one for each item of
            the batch.
        avoid: for each item of the batch, latents (C, T, F) to steer away from.
    """

    def __init__(self, scheduler, window: int, strength: float | list[float], avoid: list[list[Tensor]]):
        self.scheduler, self.window, self.avoid = scheduler, window, avoid
        self.strengths = strength if isinstance(strength, list) else [strength] * len(avoid)

    def __call__(self, prediction: Tensor, model_input: Tensor, t: Tensor) -> Tensor:
        """``prediction`` changed so that it belongs to the corrected estimate of x0; all (B, C, T, F)."""
        gain, offset = estimate_terms(self.scheduler, t)  # x0 = offset * input + gain * prediction
        estimate = offset * model_input + gain * prediction
        corrected = estimate.clone()
        for item, (strength, patterns) in enumerate(zip(self.strengths, self.avoid, strict=True)):
            for pattern in patterns:
                corrected[item] = self.without(corrected[item], pattern.to(corrected), strength)
        return prediction + (corrected - estimate) / gain

    def without(self, latents: Tensor, pattern: Tensor, strength: float = 1.0) -> Tensor:
        """``latents (C, T, F)`` minus ``strength`` times their component along ``pattern`` around each frame.

        Both are compared without their means over time, so that timbre and loudness may be similar.
        """
        pattern = pattern - pattern.mean(dim=1, keepdim=True)
        centred = latents - latents.mean(dim=1, keepdim=True)
        shared, power = (self._around((each * pattern).sum(dim=(0, 2))) for each in (centred, pattern))  # (T,)
        share = (shared / power.clamp(min=1e-6)).clamp(min=0)
        return latents - strength * share[:, None] * pattern

    def _around(self, values: Tensor) -> Tensor:
        """Means (T,) of ``values (T,)`` over the window around each."""
        window = min(self.window, len(values))
        padded = functional.pad(values[None, None], ((window - 1) // 2, window // 2), mode="replicate")
        return functional.avg_pool1d(padded, window, stride=1)[0, 0]


def estimate_terms(scheduler, t: Tensor) -> tuple[float, float]:
    """Factors of the prediction and of the UNet's input in the estimate of x0 at time ``t``.

    The UNet's input is in the coordinates of training, whatever the scheduler's own: signal and noise of total power 1,
    or for flows a linear interpolation.

    Raises:
        ValueError: for a scheduler with an unknown prediction type.
    """
    if not hasattr(scheduler, "alphas_cumprod"):  # a flow: input = (1 - sigma) x0 + sigma noise, velocity = noise - x0
        return -float(t) / scheduler.config.num_train_timesteps, 1.0
    steps = torch.arange(len(scheduler.alphas_cumprod), dtype=torch.float64)
    alpha_bar = float(_interpolate(float(t), steps, scheduler.alphas_cumprod.double().cpu()))
    signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return -noise / signal, 1 / signal
    if kind == "v_prediction":
        return -noise, signal
    raise ValueError(f"cannot steer a scheduler whose prediction_type is {kind!r}; epsilon and v_prediction are known")


def _interpolate(at: float, positions: Tensor, values: Tensor) -> Tensor:
    """``values`` at a place between ``positions`` 0, 1, 2, ..., linear in between."""
    low = min(max(int(at), 0), len(positions) - 1)
    high = min(low + 1, len(positions) - 1)
    return values[low] + (at - low) * (values[high] - values[low])
