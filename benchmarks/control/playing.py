"""Music of the model that is judged: with a context and without, and true music after its VAE and vocoder.

    wanted (name, prompt, context), ...  ->  pipeline, a few at a time  ->  FLAC and JSON in a folder

Each piece has a noise of its own and is kept when it is made, so that a stopped run goes on with the same music.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.control.pieces import SECONDS
from benchmarks.editing.edits import options, seed_of
from musicldm import MusicLDMPipeline
from musicldm.analysis.embedders import fingerprint
from musicldm.audio import read_audio, write_audio, write_whole
from musicldm.generate.reconstruct import reconstruct
from musicldm.models.context import context_layout
from musicldm.sampling.schedulers import SAMPLER, make_scheduler

AT_ONCE = 4  # pieces of one call


@dataclass(frozen=True)
class Wanted:
    """Music that is asked for."""

    name: str  # of its file
    prompt: str
    context: Any = None  # as the pipeline takes it, by kind


class Player:
    """A model, opened once, in its place in the work folder."""

    def __init__(self, model: str, work: Path):
        self.pipeline = MusicLDMPipeline.from_pretrained(model)
        parts = [fingerprint(part) for part in (self.pipeline.vae, self.pipeline.vocoder, self.pipeline.unet)]
        self.codec_folder = work / f"codec-{parts[0][:6]}{parts[1][:6]}"
        self.folder = work / f"{Path(model).name}-{parts[0][:4]}{parts[1][:4]}{parts[2]}"
        self.pipeline.scheduler = make_scheduler(SAMPLER, self.pipeline.scheduler)
        self.pipeline.optimize()
        self.pipeline.set_progress_bar_config(disable=True)
        self.rate = self.pipeline.sampling_rate

    @cached_property
    def takes_context(self) -> bool:
        return context_layout(self.pipeline.unet) is not None

    def play(self, wanted: Sequence[Wanted], kind: str, guidance: float = 1.0) -> list[Path]:
        """Files of the music that is ``wanted``, in the folder ``kind``; what is there is not made again."""
        folder = self.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{one.name}.flac" for one in wanted]
        waiting = [(one, file) for one, file in zip(wanted, files, strict=True) if not about(file).is_file()]
        for some in tqdm(list(batches(waiting)), desc=f"play {kind}", disable=not waiting):
            began = time.process_time()
            made = self._call([one for one, _ in some], kind, guidance)
            seconds = (time.process_time() - began) / len(some)
            for waveform, (one, file) in zip(made, some, strict=True):
                keep_music(file, waveform, self.rate, {"prompt": one.prompt, "processor_s": seconds})
        return files

    def _call(self, wanted: list[Wanted], kind: str, guidance: float) -> np.ndarray:
        seeds = [seed_of(kind.split("/")[-1], one.name) for one in wanted]
        given = {
            "context": [one.context for one in wanted],
            "context_guidance_scale": guidance,
            "context_sampling_rate": self.rate,  # of audio; sketches have none
        }
        return self.pipeline(
            [one.prompt for one in wanted],
            audio_length_in_s=SECONDS,
            **options(0) | {"seed": None, "generator": [torch.Generator().manual_seed(seed) for seed in seeds]},
            **given if any(one.context is not None for one in wanted) else {},
        ).audios

    def round_trip(self, waveforms: Iterable[tuple[str, np.ndarray]], kind: str) -> list[Path]:
        """Files of music ``(name, (L,))`` at the model's rate after its VAE and vocoder."""
        folder, files = self.codec_folder / kind, []
        folder.mkdir(parents=True, exist_ok=True)
        for name, waveform in tqdm(list(waveforms), desc=f"round trip of {kind}"):
            files.append(file := folder / f"{name}.flac")
            if not about(file).is_file():
                back = reconstruct(self._planes(waveform), self.pipeline.vae, self.pipeline.vocoder).waveform
                keep_music(file, back, self.rate, {})
        return files

    def _planes(self, waveform: np.ndarray) -> np.ndarray:
        """Mono ``waveform`` in as many channels as the model has."""
        channels = self.pipeline.vocoder.config.mel.get("audio_channels", 1)
        return waveform if channels == 1 else np.repeat(waveform[None], channels, axis=0)


def about(file: Path) -> Path:
    """Where it is said how a piece was made, which is written last."""
    return file.with_suffix(".json")


def batches(items: Iterable) -> Iterable[list]:
    """``items`` a few at a time."""
    iterator = iter(items)
    while some := list(itertools.islice(iterator, AT_ONCE)):
        yield some


def keep_music(file: Path, waveform: np.ndarray, rate: int, told: dict) -> None:
    """Write the mono sum of ``waveform (L,)`` or ``(A, L)``."""
    mono = waveform if waveform.ndim == 1 else waveform.mean(axis=0)
    write_audio(file, np.clip(mono.astype(np.float32), -1, 1), rate)
    write_whole(about(file), json.dumps(told).encode())


def music(file: Path, rate: int) -> np.ndarray:
    """What `keep_music` wrote, (L,)."""
    return read_audio(file, rate)[0]
