"""Building the index of a training set: batched, and taken up again where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from musicldm.audio import write_whole
from musicldm.data.clips import Clip, load_clips, metadata_rows, read_clip
from musicldm.evaluate.embedders import ClapEmbedder
from musicldm.evaluate.measurements import SILENCE
from musicldm.novelty.alignment import FRAMES_PER_S, WINDOWS_S, pitch_frames
from musicldm.novelty.index import SECOND_CHECK, NoveltyIndex, finish, partial, write_index

CLIPS_A_PART = 256  # kept on disk as they are made
TOLD = ("title", "composer", "licence", "source", "score")  # of metadata.jsonl


def build_index(
    data: str | Path,
    out: str | Path,
    embedder: ClapEmbedder,
    batch_size: int = 16,
    base_clips: int = 200,
    progress: bool = True,
) -> NoveltyIndex:
    """Embed every recording below ``data`` into the index ``out``, a folder.

    Recordings are cut into clips of what CLAP hears at once; silent ones are left out. A run that was stopped goes on
    when it is called again. The base rate comes from ``base_clips`` clips of the collection, each compared with the
    clips of all other pieces (``piece_id`` in metadata.jsonl, else the recording).

    Raises:
        FileNotFoundError: if there are no recordings.
        FileExistsError: if ``out`` exists.
        ValueError: if all recordings are silent, shorter than 2 s, or of one piece, so that there is no base rate.
    """
    data, out = Path(data), Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists; remove it, or give another name with --out")
    rate, clip_s = embedder.feature_extractor.sampling_rate, embedder.clip_s
    clips = load_clips(data, clip_s)
    rows = {row["file_name"]: row for row in metadata_rows(data)}
    work = partial(out)
    _begin(work, data, clips, embedder)
    embeddings, frames, kept = [], [], []
    groups = range(0, len(clips), CLIPS_A_PART)
    for first in tqdm(groups, desc="embed", unit="part", disable=None if progress else True):
        some = clips[first : first + CLIPS_A_PART]
        part = work / f"part-{first:08d}.npz"
        if not part.is_file():
            _embed_part(part, some, embedder, rate, clip_s, batch_size)
        with np.load(part) as made:
            embeddings.append(made["embeddings"])
            frames += np.split(made["frames"], np.cumsum(made["lengths"])[:-1]) if len(made["lengths"]) else []
            kept += [some[i] for i in made["kept"]]
    if not kept:
        raise ValueError(f"all {len(clips)} clips of {data} are silent; there is nothing to index")
    table = _table(kept, data, rows)
    if len(set(table["piece"].tolist())) < 2:
        raise ValueError(f"all recordings of {data} are of one piece; a base rate needs two pieces or more")
    ready = work / "index"
    shutil.rmtree(ready, ignore_errors=True)
    ready.mkdir()
    about = {"embedder": embedder.name, "clip_s": clip_s, "clips": len(kept), "recordings": len(table["recordings"])}
    every = np.concatenate(embeddings)
    write_index(ready, every, frames, table, about | {"base_rate": {}, "data": str(data.resolve())})
    base_rate = measure_base_rate(NoveltyIndex(ready), every, base_clips, progress)
    finish(ready, about | {"base_rate": base_rate, "data": str(data.resolve())})
    ready.rename(out)
    shutil.rmtree(work)
    return NoveltyIndex(out)


def measure_base_rate(index: NoveltyIndex, embeddings: np.ndarray, count: int, progress: bool = True) -> dict:
    """How near clips of the collection come to clips of other pieces: quantiles of similarity and alignment score."""
    drawn = np.random.default_rng(0).permutation(len(index))[:count]
    similarities, scores = [], []
    for clip in tqdm(drawn, desc="base rate", unit="clip", disable=None if progress else True):
        found, clips = index.search(embeddings[clip][None], 2 * SECOND_CHECK)
        foreign = (clips[0] >= 0) & (index.piece_of[clips[0]] != index.piece_of[clip])
        if not foreign.any():
            continue
        similarities.append(float(found[0][foreign][0]))
        if index.n_frames[clip] >= WINDOWS_S[0] * FRAMES_PER_S:
            scores.append(index.align(index.clip_frames(int(clip)), clips[0][foreign][:SECOND_CHECK]).score)
    if not scores:
        raise ValueError(
            f"none of {len(drawn)} clips drawn is {WINDOWS_S[0]:g} s long and has a clip of another piece near it; "
            "a base rate needs longer recordings, or more pieces"
        )
    result = {"clips": len(similarities), "similarities": np.sort(np.round(similarities, 4)).tolist()}
    for name, values in (("similarity", similarities), ("score", scores)):
        for percent in (50, 95, 99):
            result[f"{name}_{percent}"] = float(np.quantile(values, percent / 100))
    return result


def _embed_part(part: Path, clips: list[Clip], embedder: ClapEmbedder, rate: int, clip_s: float, batch: int) -> None:
    vectors, frames, kept = [], [], []
    for first in range(0, len(clips), batch):
        some = [(i, clips[i]) for i in range(first, min(first + batch, len(clips)))]
        waveforms = {}
        for i, clip in some:
            waveform = read_clip(clip, rate, round(clip_s * rate))[: max(1, round(clip.duration_s * rate))]
            if np.abs(waveform).max() >= SILENCE:
                waveforms[i] = waveform
        for length in sorted({len(waveform) for waveform in waveforms.values()}):
            alike = [i for i in waveforms if len(waveforms[i]) == length]
            vectors.append(embedder(torch.from_numpy(np.stack([waveforms[i] for i in alike])), rate))
            frames += [pitch_frames(waveforms[i], rate) for i in alike]
            kept += alike
    order = np.argsort(kept)
    frames = [frames[i] for i in order]
    temporary = part.with_suffix(".tmp.npz")
    np.savez(
        temporary,
        embeddings=np.concatenate(vectors)[order] if kept else np.zeros((0, embedder.size), np.float32),
        frames=np.concatenate(frames) if kept else np.zeros((0, 1), np.uint8),
        lengths=np.array([len(each) for each in frames], np.int64),
        kept=np.array(kept, np.int64)[order] if kept else np.zeros(0, np.int64),
    )
    temporary.replace(part)


def _begin(work: Path, data: Path, clips: list[Clip], embedder: ClapEmbedder) -> None:
    """Make the working folder; parts that an earlier run left of another collection or embedding are removed."""
    listing = [[str(clip.path.relative_to(data)), clip.start_s, clip.path.stat().st_size] for clip in clips]
    plan = hashlib.sha256(json.dumps([embedder.name, listing]).encode()).hexdigest()
    note = work / "plan.json"
    if work.is_dir() and any(work.iterdir()):
        if not note.is_file():
            raise FileExistsError(
                f"{work}, where the index is to grow, holds other files; give another name with --out"
            )
        if json.loads(note.read_text()) != plan:
            shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_whole(note, json.dumps(plan).encode())


def _table(clips: list[Clip], data: Path, rows: dict[str, dict]) -> dict:
    """Columns over clips (recording, piece, start_s), and the recordings."""
    names = list(dict.fromkeys(str(clip.path.relative_to(data)) for clip in clips))
    number = {name: i for i, name in enumerate(names)}
    recordings, pieces = [], []
    for name in names:
        row = rows.get(name, {})
        recordings.append({"file": name} | {key: row[key] for key in TOLD if row.get(key)})
        recordings[-1]["offset_s"] = row.get("start_s") or 0.0  # of the recording in its piece
        pieces.append(str(row.get("piece_id") or row.get("score") or name))
    of_piece = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    recording = np.array([number[str(clip.path.relative_to(data))] for clip in clips], np.int32)
    return {
        "recordings": recordings,
        "recording": recording,
        "piece": np.array([of_piece[pieces[i]] for i in recording], np.int32),
        "start_s": np.array([clip.start_s for clip in clips], np.float32),
    }
