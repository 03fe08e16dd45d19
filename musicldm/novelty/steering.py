"""Steering: while latents are denoised, patterns in time that they are to keep away from are taken out of them.

    prediction (B, C, T, F) of the UNet -> estimate of x0 -> less of what it shares with rejected draws -> prediction

What it shares is judged in windows of 2 s. The gradient of that similarity with respect to the estimate is the
rejected pattern itself, so that a step costs no further evaluation of any network. After the dissimilarity guidance
of Chen, Liu and Xu (2024), Towards memorization-free diffusion models, https://arxiv.org/abs/2404.00922.

Where a model knows nothing else, what is left of its music is a hum: the pitches of a rejected draw, held all along.
`is_hum` tells it from music by `movement_db`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from musicldm.analysis.waveforms import SILENCE
from vocoder import MelConfig, log_mel_spectrogram

FLOOR_DB = 2.5  # movement of 2 s that more than 99 % of recordings and of rendered scores exceed
RANGE_DB = 50.0  # below the loudest point of the spectrogram, that is heard
DB = 20 / np.log(10)  # in a natural logarithm of magnitudes


def movement_db(waveform: np.ndarray, sample_rate: int) -> float:
    """How far the mel bands of ``waveform (L,)`` move: standard deviation over time of their levels in dB.

    It is the mean over the bands that come within `RANGE_DB` of the loudest point, so that neither loudness nor
    silent bands matter. 0 for silence.
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
    """Whether a steered draw is no music: its ``movement`` in dB is below `FLOOR_DB`, and that of no unsteered one was.

    Music that held its notes before it was steered, as a drone does, may go on to do so.
    """
    return movement < FLOOR_DB <= min(unsteered)


class Steering:
    """Corrects the predictions of a run of `musicldm.sampling.denoising.denoise`, as its ``correct``.

    Args:
        scheduler: of diffusers' Karras family; tells what the UNet predicts and how noisy each step is.
        window: latent frames over which similarity is judged.
        strength: 1 takes out all that is shared, more leads to the opposite; one for all items of the batch, or a
            list with that of each.
        avoid: for each item of the batch, latents (C, T, F) to keep away from.
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
        """``latents (C, T, F)`` less ``strength`` times what they share with ``pattern`` around each frame.

        Both are compared without their means over time: timbre and loudness may be alike.
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
    """What to multiply the prediction and the UNet's input with for an estimate of x0 at time ``t``.

    Whatever the scheduler's own coordinates, the UNet gets what it was trained on: signal and noise of total power 1,
    or for flows a straight line between them.

    Raises:
        ValueError: for a scheduler whose predictions are of an unknown kind.
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
