"""The music that is edited: recordings, and renderings of held-out scores.

    recording or score -> mono at the model's rate (original) -> VAE and vocoder (coded) -> beats

Seams are judged in the coded version, where kept and new sound come from the same decoder.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch

from augment import track_beats
from musicldm.audio import read_audio, write_audio, write_whole
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.scores.rendering import RenderConfig, render_scores
from recipes.mini.data import LEFT_OUT, folder_of

EXCERPT_S = 20.48
SHORTEST_S = 12.0  # of a piece that is used
RENDERED = 96  # scores
RENDERING = RenderConfig(clip_s=EXCERPT_S, min_clip_s=SHORTEST_S, max_clips=1, tempo_range=(1.0, 1.0), seed=3)
# What a listener would ask for to get something like each recording; other files go by their names.
DESCRIPTIONS = {
    "arovane_beat_a": "an electronic drum break",
    "city_chill": "electronic chill-out with synthesizers and drums",
    "cue": "lo-fi hip hop with piano and drums",
    "dance_of_the_sugar_plum_fairy": "orchestral ballet music with celesta",
    "florist": "lo-fi hip hop, slow and calm",
    "house_in_a_forest": "dark ambient synthesizer",
    "hungarian_dance_5": "a lively dance for string orchestra",
    "lets_go_fishin": "a folk pop song with acoustic guitar",
    "monkeys_spinning_monkeys": "light comedy music with pizzicato strings and flute",
    "nighttide_waltz": "a chiptune waltz for synthesizer",
    "on_the_run": "a rock band song with electric guitar and drums",
    "peasant_kingdom": "medieval folk music with flute and lute",
    "the_courtyard": "electronic music for one synthesizer",
    "vibe_ace": "jazz with vibraphone and drums",
}


@dataclass(frozen=True)
class Piece:
    """An excerpt of mono music at the model's rate."""

    name: str
    piece_id: str  # the same for all excerpts and versions of one piece
    recorded: bool  # not rendered
    prompt: str
    bpm: float  # of the beats
    original: np.ndarray  # (L,)
    coded: np.ndarray  # (L,)
    beats_s: np.ndarray  # (N,) of the coded version
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.coded) / self.rate


def held_out(index: Path, scores: Path, count: int) -> list[Path]:
    """``count`` scores of different held-out pieces, from all sources in turn."""
    sources: dict[str, dict[str, Path]] = {}
    with index.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            held = row["source"] not in LEFT_OUT and folder_of(row["piece_id"]) == "held"
            if held and float(row["seconds"]) >= EXCERPT_S + 2:
                sources.setdefault(row["source"], {}).setdefault(row["piece_id"], scores / row["path"])
    turns = zip_longest(*(pieces.values() for pieces in sources.values()))
    return [path for path in chain.from_iterable(turns) if path is not None][:count]


def render(index: Path, scores: Path, folder: Path, count: int) -> list[dict]:
    """Renderings of held-out scores in the audio folder ``folder``; their rows."""
    render_scores(held_out(index, scores, count), folder, RENDERING, index=index)
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def excerpts(recordings: Path, rate: int) -> list[tuple[str, str, np.ndarray]]:
    """Name, stem and waveform of up to two excerpts of each recording in a folder."""
    found = []
    for path in sorted(recordings.iterdir()):
        if path.suffix not in (".ogg", ".flac", ".wav"):
            continue
        waveform, length = read_audio(path, rate)[0], round(EXCERPT_S * rate)
        for i in range(2):
            part = waveform[i * length : (i + 1) * length]
            if len(part) >= SHORTEST_S * rate:
                found.append((f"{path.stem}-{i}", path.stem, part))
    return found


@torch.no_grad()
def coded(pipeline: MusicLDMPipeline, waveform: np.ndarray) -> np.ndarray:
    """``waveform (L,)`` at the model's rate after its VAE and vocoder."""
    latents = pipeline.encode_audio(waveform, pipeline.sampling_rate)
    made = pipeline.vocode(pipeline.decode_latents(latents))[0].float().numpy()[: len(waveform)]
    return made / max(1.0, np.abs(made).max())  # what a file holds


def prepare(pipeline: MusicLDMPipeline, options) -> list[Piece]:
    """All pieces; waveforms and beats are kept in ``options.work``, so that this is quick the second time."""
    rate, folder = pipeline.sampling_rate, options.work / "pieces"
    found = [
        (name, stem, True, DESCRIPTIONS.get(stem, stem.replace("_", " ")), part)
        for name, stem, part in excerpts(options.recordings, rate)
    ]
    for row in render(options.index, options.scores, options.work / "rendered", options.rendered):
        waveform, _ = read_audio(options.work / "rendered" / row["file_name"], rate)
        if len(waveform) >= SHORTEST_S * rate:
            found.append((Path(row["file_name"]).stem, row["piece_id"], False, row["text"], waveform))
    return [_kept(pipeline, folder, *one) for one in found]


def _kept(pipeline, folder: Path, name: str, piece_id: str, recorded: bool, prompt: str, waveform) -> Piece:
    rate, about, audio = pipeline.sampling_rate, folder / f"{name}.json", folder / f"{name}.flac"
    folder.mkdir(parents=True, exist_ok=True)
    if not about.is_file():
        write_audio(audio, coded(pipeline, waveform), rate)
        beats = track_beats(read_audio(audio)[0], rate)
        told = {"beats_s": beats.times_s.tolist(), "bpm": beats.tempo_bpm}
        write_whole(about, json.dumps(told).encode())
    told = json.loads(about.read_text())
    made = read_audio(audio)[0]
    return Piece(name, piece_id, recorded, prompt, told["bpm"], waveform, made, np.array(told["beats_s"]), rate)
