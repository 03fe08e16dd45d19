"""Calls of the pipelines for a session: which requests go together, with which arguments, and who is told of steps."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from musicldm.generate.edit import Edit
from musicldm.generate.recipe import Settings

Cancel = threading.Event | Callable[[], bool]


class Cancelled(Exception):
    """The caller no longer wants the music that was being made."""


class Progress(NamedTuple):
    """Where the work on a batch of requests is; a copy guard that draws again begins at step 1 again."""

    step: int  # from 1 to ``steps``
    steps: int
    first: int  # number of the batch's first request among all, from 1
    last: int
    total: int  # of all requests


def options(wanted: Settings, generators: list[torch.Generator], watch: Callable) -> dict:
    """Arguments of all pipelines for what is ``wanted``, a generator a waveform; ``watch`` is told of each step."""
    watch(counter := itertools.count())
    return {
        "num_inference_steps": wanted.steps,
        "guidance_scale": wanted.guidance,
        "guidance_interval": wanted.guidance_interval,
        "negative_prompt": wanted.negative or None,
        "num_waveforms_per_prompt": wanted.candidates,
        "generator": generators,
        "callback": lambda *_: watch(counter),
    }


def seeded(seed: int) -> torch.Generator:
    """The generator of a waveform's noise, which is the same on every device."""
    return torch.Generator().manual_seed(seed)


def batches(requests: list, at_once: int) -> Iterator[list]:
    """Neighbours of equal settings, together at most ``at_once`` waveforms, and at least one request; edits alone."""
    for wanted, group in itertools.groupby(requests, key=lambda request: replace(request, prompt="any", seed=None)):
        alone = isinstance(wanted, Edit) or wanted.sections or wanted.bpm is not None
        alike, size = list(group), 1 if alone else max(1, at_once // wanted.candidates)
        yield from (alike[first : first + size] for first in range(0, len(alike), size))


def watch_steps(progress, cancel: Cancel | None, where: Progress, counter: Iterator[int]) -> None:
    """Tell and ask before the first step (``counter`` at 0) and after each; a guard's further draws count from 1."""
    step = next(counter)
    if cancel is not None and (cancel.is_set() if isinstance(cancel, threading.Event) else cancel()):
        raise Cancelled(f"cancelled after step {step} of {where.steps}, of music {where.first} to {where.last}")
    if progress is not None and step > 0:
        progress(where._replace(step=(step - 1) % where.steps + 1))
