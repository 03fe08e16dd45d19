"""Recordings that a call is given: arrays, tensors or files, one or several.

audio, its rate  ->  `as_recordings`   ->  one for each prompt, or one for all
recording        ->  `model_waveforms` ->  at the model's rate and channels, (1, L) or (1, A, L), checked
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from musicldm.audio import read_audio
from musicldm.config.values import check_kind, shown
from musicldm.editing.beats import beats_near
from musicldm.editing.regions import Region, check_regions, snap_to_beats, to_samples
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


def open_source(recording: Any, sampling_rate: int | None) -> Source:
    """``recording`` to be edited, checked; OSError and ValueError as of `model_waveforms`."""
    if isinstance(recording, str | os.PathLike):
        source: Source = Source.open(os.fspath(recording))
        check_rate(recording, sampling_rate, source.rate)
    else:
        check_rate(recording, sampling_rate)
        source = Source.of(recording, sampling_rate)
    source.check()
    return source


SNAPS = ("none", "beat")


def masked_regions(
    source: Source, start_seconds: Any, end_seconds: Any, mask: Any = None, snap: str = "none"
) -> list[tuple[int, int]]:
    """The regions of ``source`` that are made new, in its samples, in order, apart from each other.

    Args:
        start_seconds: where each begins, a number or several; before 0 for what comes before the recording.
        end_seconds: where each ends.
        mask: in place of both: (N,) values of N equal stretches of the recording, 1 for new.
        snap: "beat" moves borders inwards to the nearest beat, "none" leaves them.

    Raises:
        ValueError: for something else, for both, or for regions that `check_regions` refuses.
    """
    if not isinstance(snap, str) or snap not in SNAPS:
        raise ValueError(f"snap must be one of {', '.join(SNAPS)}, got {shown(snap)}")
    regions = _asked_regions(source, start_seconds, end_seconds, mask)
    if snap == "beat":
        regions = snap_to_beats(regions, beats_near(source, regions), source.duration_s)
    return [to_samples(region, source.rate) for region in regions]


def _asked_regions(source: Source, start_seconds: Any, end_seconds: Any, mask: Any) -> list[Region]:
    given = [value for value in (start_seconds, end_seconds) if value is not None]
    if (mask is None) != (len(given) == 2) or (mask is not None and given):
        raise ValueError("give mask_start_seconds and mask_end_seconds, or mask, to say what is made new")
    if mask is not None:
        return _of_mask(source, mask)
    starts, ends = (_numbers(value) for value in (start_seconds, end_seconds))
    if len(starts) != len(ends):
        raise ValueError(
            f"mask_start_seconds has {len(starts)} values and mask_end_seconds {len(ends)}; give a start and an end "
            "for each region"
        )
    return check_regions(zip(starts, ends, strict=True), source.duration_s, extend=True)


def _numbers(value: Any) -> list:
    if isinstance(value, np.ndarray | Tensor):
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else [value]


def _of_mask(source: Source, mask: Any) -> list[Region]:
    check_kind("mask", mask, (np.ndarray, Tensor, list, tuple), "an array (N,), 1 for new")
    values = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
    if values.ndim != 1 or not 1 < len(values) <= source.length or not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"mask must have 2 to {source.length} values of 0 (kept) and 1 (new), one for each of as many equal "
            f"stretches of the recording, got {shown(mask)}"
        )
    edges = np.diff(np.concatenate([[0], values, [0]]).astype(int))
    places = [np.flatnonzero(edges == step) * source.duration_s / len(values) for step in (1, -1)]
    return check_regions(zip(*(each.tolist() for each in places), strict=True), source.duration_s)
