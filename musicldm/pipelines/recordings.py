"""Recordings that a call is given: arrays, tensors or files, one or several.

audio, its rate  ->  `as_recordings`   ->  one for each prompt, or one for all
recording        ->  `model_waveforms` ->  at the model's rate and channels, (1, L) or (1, A, L), checked
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from musicldm.audio import read_audio
from musicldm.config.values import shown
from musicldm.editing.source import SILENT, Source
from musicldm.models.latents import model_waveform
from vocoder import MelConfig

WHAT = "an array or tensor (L,), (A, L) or (B, A, L), a file, or a list of these"


def as_recordings(audio: Any, n_prompts: int) -> list:
    """What is edited for each of ``n_prompts``: files, or arrays (L,) or (A, L) of A channels.

    Raises:
        ValueError: for something else, or another number of recordings than 1 or the prompts'.
    """
    recordings: list[Any]
    if isinstance(audio, str | os.PathLike):
        recordings = [audio]
    elif isinstance(audio, np.ndarray | Tensor):
        recordings = list(audio) if audio.ndim == 3 else [audio]
    elif isinstance(audio, list | tuple):
        recordings = list(audio)
    else:
        raise ValueError(f"audio must be {WHAT}, got {shown(audio)}")
    for one in recordings:
        if not isinstance(one, str | os.PathLike | np.ndarray | Tensor):
            raise ValueError(f"audio must be {WHAT}, got a list with {shown(one)}")
    if len(recordings) == 1:
        return recordings * n_prompts
    if len(recordings) != n_prompts:
        raise ValueError(
            f"there are {len(recordings)} recordings for {n_prompts} prompts; give one for all, or one for each"
        )
    return recordings


def check_rate(recording: Any, sampling_rate: int | None, rate: int | None = None) -> None:
    """ValueError unless an array comes with a rate, and a file whose ``rate`` is known with none or that one."""
    is_file = isinstance(recording, str | os.PathLike)
    if not is_file and sampling_rate is None:
        raise ValueError("audio in an array needs its audio_sampling_rate, in Hz")
    if is_file and sampling_rate is not None and rate is not None and sampling_rate != rate:
        raise ValueError(f"{os.fspath(recording)} has a rate of {rate} Hz, not {sampling_rate}; leave the rate out")


def model_waveforms(recording: Any, sampling_rate: int | None, mel: MelConfig) -> Tensor:
    """``recording`` as a model has it: (1, L), or (1, A, L), at the model's rate; on the CPU.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for what is no audio, is silent, shorter than a mel frame, or holds NaN.
    """
    if isinstance(recording, str | os.PathLike):
        name = os.fspath(recording)
        samples, rate = read_audio(name, channels=min(mel.audio_channels, 2))
        check_rate(recording, sampling_rate, rate)
    else:
        check_rate(recording, sampling_rate)
        source = Source.of(recording, sampling_rate)
        name, samples, rate = source.name, source.read(0, source.length), source.rate
    waveform = model_waveform(np.atleast_2d(samples)[None], rate, mel)
    if waveform.shape[-1] < mel.hop_length:
        frame_s = mel.hop_length / mel.sample_rate
        raise ValueError(f"{name} is shorter than one frame of the model, {frame_s:g} s; give a longer recording")
    if float(waveform.abs().max()) < SILENT:
        raise ValueError(f"{name} is silent throughout; give a recording with sound")
    return waveform


def fitted(waveform: Tensor, n_samples: int) -> Tensor:
    """``waveform (..., L)`` cut, or with silence behind it, to ``n_samples``."""
    return functional.pad(waveform, (0, max(0, n_samples - waveform.shape[-1])))[..., :n_samples]


def common_length(waveforms: list[Tensor]) -> int:
    """Samples of each of ``waveforms``; ValueError if they differ, which a batch cannot."""
    lengths = sorted({waveform.shape[-1] for waveform in waveforms})
    if len(lengths) > 1:
        raise ValueError(
            f"recordings of one call must be equally long, got {lengths[0]} to {lengths[-1]} samples at the model's "
            "rate; give audio_length_in_s, or make a call for each"
        )
    return lengths[0]


def stacked(parts: list[Tensor], n: int) -> Tensor:
    """``parts`` (1, ...), each ``n`` times: (len(parts) * n, ...)."""
    return torch.cat(parts).repeat_interleave(n, dim=0)
