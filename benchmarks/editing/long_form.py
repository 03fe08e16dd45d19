"""Long form: pieces of minutes in sections, each in a process of its own; seams, prompts and cost.

sections of 2 or 5 minutes -> `MusicLDMLongFormPipeline` | pieces one after another -> waveform
-> ranks of the changes at borders; whether CLAP hears each section's own prompt; time and memory a second
"""

from __future__ import annotations

import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from augment import track_beats
from benchmarks.editing import keep
from benchmarks.editing.edits import Pipelines, options, seed_of
from musicldm import MusicLDMLongFormPipeline, Section
from musicldm.analysis.seams import seam_quantiles
from musicldm.models.clap import embed_audio

METHODS = ("ours", "splice")
PIECES = {120.0: (6, 8), 300.0: (10, 4)}  # seconds: sections of a piece, and pieces
PROMPTS = (
    "calm solo piano",
    "fast rock with electric guitars and drums",
    "a slow string quartet",
    "big band jazz with brass and drums",
    "electronic dance music with synthesizers and drums",
    "a flute and a harp, quiet",
    "a church organ hymn",
    "a folk song with acoustic guitar",
    "a drum solo",
    "a march for brass band",
    "dark ambient synthesizer",
    "a waltz for accordion and strings",
)
FADE_S = 0.01
MARGIN_S = 1.0  # of a section at either end that CLAP does not hear


def sections_of(i: int, seconds: float) -> list[Section]:
    """The sections of piece ``i``, all of one length, each with another prompt."""
    count = PIECES[seconds][0]
    order = np.random.default_rng(seed_of("long", str(i), str(seconds))).permutation(len(PROMPTS))
    return [Section(PROMPTS[k], seconds / count) for k in order[:count]]


def made_alone(model: str, i: int, seconds: float, method: str, out: Path) -> dict:
    """Make piece ``i`` in this process and keep it in ``out``; processor time and memory that it took."""
    torch.set_num_threads(1)
    pipelines, sections = Pipelines.load(model), sections_of(i, seconds)
    call = options(seed_of("long", str(i)))
    pipelines.text(sections[0].prompt, audio_length_in_s=10.24, **call)  # what any music takes
    before, began = peak_bytes(), time.process_time()
    if method == "ours":
        (waveform,) = MusicLDMLongFormPipeline.from_pipe(pipelines.text)(sections, **call).audios
    else:
        waveform = spliced(pipelines, sections, call)
    told = {"processor_s": time.process_time() - began, "bytes": peak_bytes() - before, "bytes_before": before}
    keep.sound(out, pipelines.text.sampling_rate, lambda: (waveform, {}))
    return told


def peak_bytes() -> int:
    """The most memory that this process has had; Linux tells it in KiB."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def spliced(pipelines: Pipelines, sections: list[Section], call: dict) -> np.ndarray:
    """Each section made by itself, joined by short fades."""
    rate, parts = pipelines.text.sampling_rate, []
    for section in sections:
        parts.append(pipelines.text(section.prompt, audio_length_in_s=section.seconds, **call).audios[0])
        ramp = np.linspace(0, 1, round(FADE_S * rate))
        parts[-1][: len(ramp)] *= ramp
        parts[-1][-len(ramp) :] *= ramp[::-1]
    return np.concatenate(parts)


def piece(i: int, seconds: float, method: str, model: str, pipelines: Pipelines, folder: Path) -> dict:
    """All numbers of a piece."""
    name = f"long/{seconds:g}-{i}-{method}"
    path = folder / f"{name}-sound.flac"

    def make() -> dict:
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            return alone.submit(made_alone, model, i, seconds, method, path).result()

    def measure() -> dict:
        cost = keep.numbers(folder / f"{name}-cost.json", make)
        rate, sections = pipelines.text.sampling_rate, sections_of(i, seconds)
        waveform, _ = keep.sound(path, rate, lambda: (np.zeros(0), {}))
        borders = np.cumsum([section.seconds for section in sections])[:-1].tolist()
        beats = track_beats(waveform, rate).times_s
        return cost | {
            "seconds": seconds,
            "quantiles": seam_quantiles(waveform, rate, borders, beats).tolist(),
            "right_prompt": right_prompts(waveform, sections, pipelines),
        }

    return keep.numbers(folder / f"{name}.json", measure)


@torch.no_grad()
def right_prompts(waveform: np.ndarray, sections: list[Section], pipelines: Pipelines) -> list[bool]:
    """Of each section whether its own prompt is the nearest of all sections' prompts in CLAP's space."""
    text, rate, first, heard = pipelines.text, pipelines.text.sampling_rate, 0.0, []
    for section in sections:
        start, stop = first + MARGIN_S, first + section.seconds - MARGIN_S
        part = torch.from_numpy(waveform[round(start * rate) : round(stop * rate)])[None]
        heard.append(embed_audio(text.text_encoder, text.feature_extractor, part, rate)[0])
        first += section.seconds
    wanted = text.embed_texts([section.prompt for section in sections])
    similarity = torch.stack(heard).cpu() @ wanted.cpu().T  # (S, S)
    return (similarity.argmax(dim=1) == torch.arange(len(sections))).tolist()
