"""The slow part of an evaluation, which can be resumed: generating clips, embedding them and measuring them.

prompts -> session -> OUT/audio/00000.wav, ... -> embeddings (N, D) and measurements of each clip
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from musicldm.analysis.embedders import Embedder
from musicldm.analysis.key import estimate_key
from musicldm.analysis.onsets import percussive_share
from musicldm.analysis.waveforms import SILENCE
from musicldm.audio import read_audio, read_recipe
from musicldm.audio.output import check_mark, read_mark, write_whole
from musicldm.audio.reading import identity
from musicldm.audio.text import read_lines, read_text
from musicldm.data.collection import Collection
from musicldm.data.metadata import SUFFIXES
from musicldm.evaluate.families import REFUSED
from musicldm.generate.recipe import Request
from musicldm.generate.session import Session

PLAN, AUDIO = "settings.json", "audio"
WRITES = ("metrics.json", "report.md", "report.html", "measured.jsonl")
TEMPO = re.compile(r"(?<![\d.])([1-9]\d{1,2}(?:\.\d+)?)\s*(?:BPM|beats per minute)", re.IGNORECASE)
KEY = re.compile(r"\b([A-G](?:[#b]|[ -](?:sharp|flat))?|(?<=in )[b-g](?:[#b]|[ -](?:sharp|flat))?)[ -](major|minor)\b")
USUAL = {"Cb": "B", "Fb": "E", "E#": "F", "B#": "C"}  # unusual names of keys
DRUMS, NO_DRUMS = re.compile(r"\bdrum(?!less)", re.IGNORECASE), re.compile(r"\bdrumless\b", re.IGNORECASE)


class Clip(NamedTuple):
    """One clip to evaluate."""

    path: Path
    prompt: str | None
    seed: int | None = None


def read_prompts(source: Path, most: int | None = None) -> list[str]:
    """The lines of a text file that are not empty, at most ``most``.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it has no prompts.
    """
    prompts = [line.strip() for line in read_lines(source)]
    prompts = [prompt for prompt in prompts if prompt][:most]
    if not prompts:
        raise ValueError(f"{source} holds no prompts; give a text file with one a line, or a folder with captions")
    return prompts


def captioned_clips(folder: Path, most: int | None = None) -> list[Clip]:
    """The recordings of a folder that have a caption, at most ``most``; the first caption of each is its prompt.

    Raises:
        FileNotFoundError: if there are no recordings.
        ValueError: if no recording has a caption.
    """
    clips = [clip for clip in folder_clips(folder) if (clip.prompt or "").strip()][:most]
    if not clips:
        raise ValueError(f"{folder} holds no prompts; give a text file with one a line, or a folder with captions")
    return clips


def folder_clips(folder: Path, most: int | None = None) -> list[Clip]:
    """The recordings of a folder, at most ``most``, with their captions if there are any.

    Raises:
        FileNotFoundError: if there is no folder, or no recording in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there are no recordings in {folder}: there is no such folder")
    collection = Collection(folder)
    if collection.in_shards or not collection.rows:
        why = "".join(f"; {name} {reason}" for name, reason in list(collection.left_out.items())[:5])
        raise FileNotFoundError(f"there are no recordings in {folder} ({', '.join(SUFFIXES)}){why}")
    print(collection.account(), file=sys.stderr)
    return [Clip(row["path"], next(iter(collection.texts(row)), None)) for row in collection.rows[:most]]


def begin(out: Path, settings: dict) -> None:
    """Write the settings of an evaluation into its folder ``out``, or check those that are there.

    Raises:
        ValueError: if ``out`` holds an evaluation with other settings.
        FileExistsError: if it holds files of other origin under names that an evaluation writes.
    """
    note = out / PLAN
    made = (AUDIO,) if settings["audio"] is None else ()
    if check_mark(out, PLAN, (*WRITES, *made), "evaluate") and read_mark(note, "evaluate", "prompts") != settings:
        raise ValueError(f"{out} holds an evaluation with other settings ({note}); give another folder with --out")
    write_whole(note, (json.dumps(settings, indent=1) + "\n").encode())


def generate_clips(session: Session, requests: list[Request], out: Path, batch_size: int) -> list[Clip]:
    """Make a clip for each of ``requests``, ``batch_size`` at a time; clips in ``out / "audio"`` are not made again.

    Raises:
        FileExistsError: if a file there is not of this evaluation, according to its recipe.
    """
    folder = out / AUDIO
    folder.mkdir(parents=True, exist_ok=True)
    clips = [Clip(folder / f"{i:05d}.wav", request.prompt, request.seed) for i, request in enumerate(requests)]
    for clip in clips:
        if clip.path.is_file() and not _made_here(clip):
            raise FileExistsError(f"{clip.path} is not of this evaluation; move it away, or give another --out")
    starts = range(0, len(clips), batch_size)
    for first in tqdm(starts, desc="generate", unit="batch", disable=None):
        batch = slice(first, first + batch_size)
        if all(clip.path.is_file() for clip in clips[batch]):
            continue
        pieces = session.run_many(requests[batch], at_once=batch_size)
        for clip, piece in zip(clips[batch], pieces, strict=True):
            piece.save(clip.path)
    return clips


def _made_here(clip: Clip) -> bool:
    """Whether the recipe in the file of ``clip`` has its prompt and seed."""
    try:
        recipe = read_recipe(clip.path)
    except ValueError:
        return False
    return (recipe.get("prompt"), recipe.get("seed")) == (clip.prompt, clip.seed)


def embed_clips(
    clips: list[Clip], embedder: Embedder, sample_rate: int, cache: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (M, D) of the clips that are not silent, and a mask (N,) of these clips.

    Args:
        clips: N clips.
        embedder: such as `ClapEmbedder`.
        sample_rate: to which clips are resampled first, in Hz.
        cache: a folder that keeps the result for the next time.

    Raises:
        ValueError: if all clips are silent, or one is too short.
    """
    kept = None
    if cache is not None:
        kept = cache / f"{_key(embedder.name, sample_rate, [_stamp(clip) for clip in clips])}.npz"
        if kept.is_file():
            with np.load(kept) as made:
                return made["embeddings"], made["heard"]
    rows, heard = [], []
    for clip in tqdm(clips, desc=f"embed by {embedder.name.split()[0]}", unit="clip", disable=None):
        waveform = read_audio(clip.path, sample_rate)[0]
        heard.append(bool(np.abs(waveform).max(initial=0.0) >= SILENCE))
        if heard[-1]:
            rows.append(embedder(torch.from_numpy(waveform)[None], sample_rate)[0])
            if not np.isfinite(rows[-1]).all():
                raise ValueError(
                    f"{clip.path}, of {len(waveform) / sample_rate:.2f} s, is too short to embed; remove it"
                )
    if not rows:
        raise ValueError(f"all {len(clips)} clips are silent, for example {clips[0].path}; give recordings with sound")
    embeddings, heard = np.stack(rows), np.array(heard)
    if kept is not None:
        content = io.BytesIO()
        np.savez(content, embeddings=embeddings, heard=heard)
        write_whole(kept, content.getvalue())
    return embeddings, heard


def asked(prompt: str | None) -> dict:
    """Tempo (BPM), key ("Eb major") and drums (true or false) that a prompt asks for, each None if not mentioned."""
    prompt = prompt or ""
    tempo, key = TEMPO.search(prompt), KEY.search(prompt)
    named, wanted = (DRUMS.search(text) is not None for text in (prompt, REFUSED.sub("", prompt)))
    drums = True if wanted else False if named or NO_DRUMS.search(prompt) else None
    if key:
        tonic = re.sub("[ -]sharp", "#", re.sub("[ -]flat", "b", key[1]))
        tonic = tonic[0].upper() + tonic[1:]
        key = f"{USUAL.get(tonic, tonic)} {key[2]}"
    return {"tempo_bpm": tempo and float(tempo[1]), "key": key, "drums": drums}


def measure_clip(clip: Clip, tempo: bool) -> dict:
    """Percussive share of a clip, and its key and tempo if the prompt names them (the latter with ``tempo``)."""
    waveform, rate = read_audio(clip.path)
    wanted = asked(clip.prompt)
    measured = {"percussive_share": percussive_share(waveform, rate)}
    if wanted["key"]:
        measured["key"] = estimate_key(waveform, rate).name
    if tempo and wanted["tempo_bpm"]:
        from augment import track_beats

        measured["tempo_bpm"] = float(track_beats(waveform, rate).tempo_bpm or 0.0)
    return measured


def measure_clips(clips: list[Clip], out: Path, tempo: bool) -> list[dict]:
    """`measure_clip` of each clip; results are kept in ``out / "measured.jsonl"``, so that a stopped run can continue.

    Kept results of files that have changed, or were measured with other settings, are not used.
    """
    kept = out / "measured.jsonl"
    lines = read_text(kept).split("\n")[:-1] if kept.is_file() else []  # the last may be cut off
    write_whole(kept, "".join(f"{line}\n" for line in lines).encode())
    done = {row.pop("of", None): row for row in map(json.loads, lines)}
    keys = [_key("measured", clip.prompt, tempo, _stamp(clip)) for clip in clips]
    with kept.open("a") as file:
        for key, clip in zip(tqdm(keys, desc="measure", unit="clip", disable=None), clips, strict=True):
            if key not in done:
                done[key] = measure_clip(clip, tempo)
                file.write(json.dumps({"of": key} | done[key]) + "\n")
                file.flush()
    return [done[key] for key in keys]


def _stamp(clip: Clip) -> list:
    """A value that changes when the file of ``clip`` changes."""
    return [str(clip.path), identity(clip.path)]


def _key(*parts) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
