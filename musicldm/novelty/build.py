"""Builds the index of a training set in batches, resumable, on one machine or on a Ray cluster.

audio folder, or shards of `musicldm prepare` -> clips, their windows of 2 s -> parts of 256 clips -> INDEX
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from musicldm.analysis.waveforms import SILENCE
from musicldm.audio.output import check_mark, read_mark, sole_writer, write_whole
from musicldm.data.clips import Clip, read_clip
from musicldm.data.collection import Collection, as_collection
from musicldm.data.metadata import licence_of
from musicldm.data.shards import recording_identity
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.novelty.alignment import BANDS, FRAMES_PER_S, WINDOWS_S, pitch_frames
from musicldm.novelty.background import similarity_test
from musicldm.novelty.index import SECOND_CHECK, NoveltyIndex, Windows, finish, partial, write_index
from musicldm.novelty.windows import HOP_S, WINDOW_S, cut_windows, embed_windows, query_windows

CLIPS_A_PART = 256  # kept on disk as they are made
PLAN, READY = "plan.json", "index"  # in the working folder: settings of the run, and the finished index
TOLD = ("title", "composer", "licence", "source", "score")  # of metadata.jsonl


class RecordingInfo(NamedTuple):
    """What the index stores about a recording."""

    about: dict  # file, title, licence, ..., offset_s: position of the recording in its piece
    piece: str


def build_index(
    data: str | Path | Collection,
    out: str | Path,
    embedder: ClapEmbedder,
    batch_size: int = 16,
    base_clips: int = 200,
    progress: bool = True,
    split: str | None = None,
    ray: str | None = None,
    windows: bool = True,
) -> NoveltyIndex:
    """Embed every recording below ``data`` into the index ``out``, a folder.

    ``data`` is an audio folder, or a folder that `musicldm prepare` made. Recordings are cut into clips of the length
    that CLAP reads; silent clips are left out. A stopped run continues when it is called again. The base rate comes
    from ``base_clips`` clips of the collection, each compared with the clips of all other pieces (``piece_id`` in
    metadata.jsonl, ``group`` in shards, otherwise the recording).

    Args:
        split: use only the recordings of this split, train or validation.
        ray: address of a Ray cluster (``auto`` for one that runs here). All its machines must see ``data`` at the same
            path. The result is the same as on one machine.
        windows: also embed windows of 2 s, which makes the embedding up to five times as slow.

    Raises:
        FileNotFoundError: if there are no recordings.
        FileExistsError: if ``out`` exists.
        BlockingIOError: if another process builds it.
        ConnectionError: if there is no cluster at ``ray``.
        ValueError: if all recordings are silent, shorter than 2 s, or of one piece, so that there is no base rate.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists; remove it, or give another name with --out")
    collection = as_collection(data)
    data = collection.folder
    clips = [clip for clip in collection.clips(embedder.clip_s) if split in (None, clip.split)]
    if progress:
        print(collection.account(), file=sys.stderr)
    if not clips:
        raise FileNotFoundError(f"no recording of {data} is in the split {split}; leave out --split")
    work = partial(out)
    with sole_writer(work, "novelty index"):
        _begin(work, data, clips, embedder, windows)
        parts = _make_parts(work, clips, EmbedPart(embedder, batch_size, windows), ray, progress)
        kept, embeddings, frames, found = _gather(parts, windows)
        if not kept:
            raise ValueError(f"all {len(clips)} clips of {data} are silent; give recordings with sound")
        table = _table(kept, recording_infos(collection))
        if len(set(table["piece"].tolist())) < 2:
            raise ValueError(
                f"all recordings of {data} are of one piece; a base rate needs two pieces or more: check piece_id"
            )
        ready = work / READY
        shutil.rmtree(ready, ignore_errors=True)
        ready.mkdir()
        about = {"embedder": embedder.name, "clip_s": embedder.clip_s, "clips": len(kept)}
        about |= {"windows": 0 if found is None else len(found.clip), "recordings": len(table["recordings"])}
        about |= {"data": str(data.resolve())}
        write_index(ready, embeddings, frames, table, about | {"base_rate": {}}, found)
        base_rate = measure_base_rate(NoveltyIndex(ready), embeddings, kept, embedder, base_clips, progress)
        finish(ready, about | {"base_rate": base_rate})
        ready.rename(out)
        _clear(work)
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()
    return NoveltyIndex(out)


def recording_infos(collection: Collection) -> dict[Path, RecordingInfo]:
    """What the metadata say about each recording, by path."""
    told, part_s = {}, {}
    for row in collection.rows if collection.in_shards else ():
        # all parts of a recording but the last are equally long
        part_s[row["file_name"]] = max(row["duration_s"], part_s.get(row["file_name"], 0.0))
    for row in collection.rows:
        name = row["file_name"]
        if collection.in_shards:
            about = {"file": name, "offset_s": row["part"] * part_s[name]}
            if licence := licence_of(row):
                about["licence"] = licence
            told[row["path"]] = RecordingInfo(about, row["group"])
        else:
            about = {"file": name} | {key: row[key] for key in TOLD if row.get(key)}
            about["offset_s"] = offset_of(row)
            told[row["path"]] = RecordingInfo(about, str(row.get("piece_id") or row.get("score") or name))
    return told


def offset_of(row: dict) -> float:
    """Position of a recording in its piece, in seconds: ``start_s`` of its metadata, or 0.

    Raises:
        ValueError: if ``start_s`` is not a number.
    """
    try:
        return float(row.get("start_s") or 0.0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"start_s of {row['file_name']} must be seconds, got {row['start_s']!r}") from error


def measure_base_rate(
    index: NoveltyIndex,
    embeddings: np.ndarray,
    clips: list[Clip],
    embedder: ClapEmbedder,
    count: int,
    progress: bool = True,
) -> dict:
    """Base rate: quantiles of the similarities and scores of ``count`` clips, each compared with all other pieces.

    With 99 clips or more, a further clip exceeds the 99 % quantile with a probability of 1 % (i / (n + 1), the expected
    share below the i-th of n values). With fewer, the threshold of scores is the largest score, and that of
    similarities comes from their tail (`similarity_test`). ``piece_scores`` has the best score of each piece, which
    `musicldm.novelty.background` uses for small collections.
    """
    drawn = np.random.default_rng(0).permutation(len(index))[:count]
    rows = []  # similarity, score and similarity of windows of each clip; NaN where it is too short for the last two
    of_piece: dict[int, float] = {}  # best score of each piece
    for clip in tqdm(drawn, desc="base rate", unit="clip", disable=None if progress else True):
        found, clips_near = index.search(embeddings[clip][None], 2 * SECOND_CHECK)
        foreign = (clips_near[0] >= 0) & (index.piece_of[clips_near[0]] != index.piece_of[clip])
        if not foreign.any():
            continue
        score = near = np.nan
        if index.n_frames[clip] >= WINDOWS_S[0] * FRAMES_PER_S:
            score = index.align(index.clip_frames(int(clip)), clips_near[0][foreign][:SECOND_CHECK]).score
            if index.windows is not None:
                near = _windows_elsewhere(index, int(index.piece_of[clip]), clips[clip], embedder)
        rows.append((float(found[0][foreign][0]), score, near))
        piece = int(index.piece_of[clip])
        of_piece[piece] = np.fmax(of_piece.get(piece, np.nan), score)
    values = np.array(rows).reshape(-1, 3)
    if np.isnan(values[:, 1]).all():
        raise ValueError(
            f"none of the {len(drawn)} clips drawn is {WINDOWS_S[0]:g} s long and has a clip of another piece near it; "
            "give longer recordings, or more pieces"
        )
    result = {"clips": len(rows), "similarities": np.sort(np.round(values[:, 0], 4)).tolist()}
    scores = np.array(list(of_piece.values()))
    result["piece_scores"] = np.sort(np.round(scores[np.isfinite(scores)], 4)).tolist()
    for name, column in zip(("similarity", "score", "window_similarity"), values.T, strict=True):
        for percent in (50, 95, 99) if np.isfinite(column).any() else ():
            result[f"{name}_{percent}"] = float(np.nanquantile(column, percent / 100, method="weibull"))
        if name != "score" and np.isfinite(column).any():
            result |= similarity_test(column[np.isfinite(column)]).record(name)
    return result


def _windows_elsewhere(index: NoveltyIndex, piece: int, clip: Clip, embedder: ClapEmbedder) -> float:
    """Highest similarity of the windows of ``clip``, cut like those of a query, to windows of other pieces; or NaN."""
    rate = embedder.feature_extractor.sampling_rate
    windows = query_windows(_hear(clip, embedder), rate, embedder)[1]
    similarities, numbers = index.search_windows(embed_windows(windows, rate, embedder), 2 * SECOND_CHECK)
    foreign = (numbers >= 0) & (index.piece_of[index.clip_of_window[numbers]] != piece)
    return float(similarities[foreign].max()) if foreign.any() else np.nan


def _hear(clip: Clip, embedder: ClapEmbedder) -> np.ndarray:
    """Waveform (L,) of ``clip`` at the rate of ``embedder``, at most as long as it reads."""
    rate = embedder.feature_extractor.sampling_rate
    waveform = read_clip(clip, rate, round(embedder.clip_s * rate))
    return waveform[: max(1, round(clip.duration_s * rate))]


class EmbedPart:
    """A function of clips that returns embeddings and semitone bands of those that are not silent, as arrays."""

    def __init__(self, embedder: ClapEmbedder, batch_size: int, windows: bool):
        self.embedder, self.batch_size, self.windows = embedder, batch_size, windows

    def __call__(self, clips: list[Clip]) -> dict[str, np.ndarray]:
        """``embeddings (K, D)``, ``frames`` one after the other, their ``lengths (K,)``, and which are ``kept``; with
        windows ``window_embeddings (W, D)`` float16, ``window_clip (W,)`` counted from 0 to K - 1, ``window_start_s``.
        """
        rate, size = self.embedder.feature_extractor.sampling_rate, self.embedder.size
        kept, frames = [], []
        vectors, heard = [np.zeros((0, size), np.float32)], [np.zeros((0, size), np.float16)]
        window_clip, window_start_s = [], []
        for first in range(0, len(clips), self.batch_size):
            waveforms = {i: _hear(clips[i], self.embedder) for i in range(len(clips))[first : first + self.batch_size]}
            waveforms = {i: waveform for i, waveform in waveforms.items() if np.abs(waveform).max() >= SILENCE}
            rows = np.zeros((len(waveforms), size), np.float32)
            lengths = np.array([len(waveform) for waveform in waveforms.values()])
            for length in np.unique(lengths):
                alike = np.stack([waveform for waveform in waveforms.values() if len(waveform) == length])
                rows[lengths == length] = self.embedder(torch.from_numpy(alike), rate)
            windows = []
            for i, waveform in waveforms.items():
                starts_s, some = cut_windows(waveform, rate, HOP_S) if self.windows else ([], [])
                windows += some
                window_clip += [len(kept)] * len(some)
                window_start_s += [clips[i].start_s + start_s for start_s in starts_s]
                frames.append(pitch_frames(waveform, rate))
                kept.append(i)
            vectors.append(rows)
            heard.append(embed_windows(windows, rate, self.embedder, self.batch_size).astype(np.float16))
        arrays = {
            "embeddings": np.concatenate(vectors),
            "frames": np.concatenate(frames) if kept else np.zeros((0, BANDS), np.uint8),
            "lengths": np.array([len(each) for each in frames], np.int64),
            "kept": np.array(kept, np.int64),
        }
        if self.windows:
            arrays["window_embeddings"] = np.concatenate(heard)
            arrays["window_clip"] = np.array(window_clip, np.int32)
            arrays["window_start_s"] = np.array(window_start_s, np.float32)
        return arrays


def _gather(
    parts: dict[Path, list[Clip]], windows: bool
) -> tuple[list[Clip], np.ndarray, list[np.ndarray], Windows | None]:
    """The clips that are not silent, their embeddings (N, D), semitone bands and, if there are any, windows."""
    kept, embeddings, frames, found = [], [], [], []
    for path, some in parts.items():
        with np.load(path) as made:
            if windows:
                clip = made["window_clip"] + np.int32(len(kept))
                found.append(Windows(made["window_embeddings"], clip, made["window_start_s"]))
            embeddings.append(made["embeddings"])
            frames += np.split(made["frames"], np.cumsum(made["lengths"])[:-1]) if len(made["lengths"]) else []
            kept += [some[i] for i in made["kept"]]
    together = Windows(*map(np.concatenate, zip(*found, strict=True))) if windows else None
    return kept, np.concatenate(embeddings), frames, together if windows and len(together.clip) else None


def _make_parts(
    work: Path, clips: list[Clip], embed: EmbedPart, ray: str | None, progress: bool
) -> dict[Path, list[Clip]]:
    """Make the missing parts below ``work``; returns the files of all parts with their clips."""
    parts = {
        work / f"part-{first:08d}.npz": clips[first : first + CLIPS_A_PART]
        for first in range(0, len(clips), CLIPS_A_PART)
    }
    missing = {path: some for path, some in parts.items() if not path.is_file()}
    bar = tqdm(total=len(parts), initial=len(parts) - len(missing), desc="embed", unit="part")
    bar.disable = bar.disable or not progress
    for path, arrays in _embed_parts(missing, embed, ray):
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_whole(path, content.getvalue())
        bar.update()
    bar.close()
    return parts


def _embed_parts(parts: dict[Path, list[Clip]], embed: EmbedPart, ray: str | None) -> Iterator[tuple[Path, dict]]:
    """The arrays of each of ``parts``, in the order in which they are finished."""
    if ray is None:
        for path, clips in parts.items():
            yield path, embed(clips)
        return
    from musicldm.data.cluster import map_on_cluster

    gpus = 1 if embed.embedder.clap.device.type == "cuda" else 0
    paths = list(parts)
    for i, arrays in map_on_cluster(embed, list(parts.values()), ray, gpus=gpus):
        yield paths[i], arrays


def _begin(work: Path, data: Path, clips: list[Clip], embedder: ClapEmbedder, windows: bool) -> None:
    """Make the working folder; parts of an earlier run with another collection or embedding are removed."""
    recordings = {path: recording_identity(path) for path in dict.fromkeys(clip.path for clip in clips)}
    listing = [[str(clip.path), clip.start_s, recordings[clip.path]] for clip in clips]
    plan = [embedder.name, str(data), CLIPS_A_PART, [WINDOW_S, HOP_S] if windows else None, listing]
    plan = hashlib.sha256(json.dumps(plan).encode()).hexdigest()
    note = work / PLAN
    if check_mark(work, PLAN, ("*",), "novelty index"):
        before = read_mark(note, "novelty index")
        if not re.fullmatch("[0-9a-f]{64}", before):
            raise FileExistsError(f"{note} was not written by `musicldm novelty index`; give another folder with --out")
        if before != plan:
            _clear(work)
    write_whole(note, json.dumps(plan).encode())


def _clear(work: Path) -> None:
    """Remove the parts from which an index was made."""
    shutil.rmtree(work / READY, ignore_errors=True)
    for file in (*work.glob("part-*.npz"), work / PLAN):
        file.unlink(missing_ok=True)


def _table(clips: list[Clip], told: dict[Path, RecordingInfo]) -> dict:
    """Columns over clips (recording, piece, start_s), and the recordings."""
    paths = list(dict.fromkeys(clip.path for clip in clips))
    number = {path: i for i, path in enumerate(paths)}
    of_piece = {piece: i for i, piece in enumerate(dict.fromkeys(told[path].piece for path in paths))}
    return {
        "recordings": [told[path].about for path in paths],
        "recording": np.array([number[clip.path] for clip in clips], np.int32),
        "piece": np.array([of_piece[told[clip.path].piece] for clip in clips], np.int32),
        "start_s": np.array([clip.start_s for clip in clips], np.float32),
    }
