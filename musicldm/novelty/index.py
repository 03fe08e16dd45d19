"""The index of a training set: embeddings and levels of its clips, and its base rate.

    folder of recordings -> clips -> CLAP embeddings -> FAISS index    INDEX/clips.faiss
                                  -> semitone bands (uint8)            INDEX/frames.npy
                         -> windows of 2 s, unless left out            INDEX/windows.faiss

Johnson, Douze and Jegou (2019), Billion-scale similarity search with GPUs. https://arxiv.org/abs/1702.08734
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from musicldm.audio.output import fitting, write_whole
from musicldm.audio.text import read_lines
from musicldm.novelty.alignment import BANDS, FRAMES_PER_S, Match, best_match

VERSION = 4  # version 2 has no windows; thresholds of versions 1 and 3 are for other scores
FILES = ("clips.faiss", "clips.npz", "frames.npy", "recordings.jsonl")
WINDOW_FILES = ("windows.faiss", "windows.npz")  # absent if the index was built without windows
EXACT_UP_TO = 20_000  # vectors; above that, search is approximate, in cells
CELLS_VISITED = 0.1  # share of the cells that a search visits
SECOND_CHECK = 2000  # nearest clips whose passages are compared; in small collections these are all clips
REBUILD = "build it again with `musicldm novelty index`"


class Neighbour(NamedTuple):
    """A clip of the training set, or a window of it, that is near a query."""

    clip: int
    similarity: float  # cosine of the embeddings
    recording: dict  # file, title, licence, ...
    start_s: float


class Windows(NamedTuple):
    """The windows of a training set."""

    embeddings: np.ndarray  # (W, D) float16, unit vectors
    clip: np.ndarray  # (W,) int32, number of the clip of each window
    start_s: np.ndarray  # (W,) float32, in the recording


def make_faiss(embeddings: np.ndarray, small: bool = False):
    """A FAISS index of unit-norm ``embeddings (N, D)``: exact for small collections, else cells of 16-bit vectors.

    With ``small``, cells of 8-bit vectors are used, with squared distances instead of products: rounding errors then
    affect the similarity of two equal vectors only in second order.
    """
    import faiss

    count, width = embeddings.shape
    metric, codes = (faiss.METRIC_L2, "SQ8") if small else (faiss.METRIC_INNER_PRODUCT, "SQfp16")
    if count <= EXACT_UP_TO:
        index = faiss.IndexFlat(width, metric)
    else:
        cells = round(2 * np.sqrt(count))
        index = faiss.index_factory(width, f"IVF{cells},{codes}", metric)
        index.cp.niter, index.cp.seed = 8, 0
        drawn = np.random.default_rng(0).permutation(count)[: 40 * cells]
        index.train(np.ascontiguousarray(embeddings[np.sort(drawn)], np.float32))
        index.nprobe = max(1, round(CELLS_VISITED * cells))
    for first in range(0, count, 65_536):
        index.add(np.ascontiguousarray(embeddings[first : first + 65_536], np.float32))
    return index


class NoveltyIndex:
    """The index of a training set. `musicldm.novelty.build_index` makes one.

    Args:
        folder: that `build_index` wrote.

    Raises:
        FileNotFoundError: if there is no index in the folder.
        ValueError: if the index is incomplete, damaged or of another version.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        about = self.folder / "index.json"
        if not about.is_file():
            half = " (it was never finished: run the same command again)" if partial(self.folder).is_dir() else ""
            raise FileNotFoundError(f"there is no novelty index at {self.folder}{half}; {REBUILD}")
        try:
            self.about = json.loads(about.read_text())
            files, version = dict(self.about["files"]), self.about["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{about} is damaged ({error}); {REBUILD}") from error
        if version != VERSION:
            raise ValueError(
                f"{self.folder} is an index of version {version}, but version {VERSION} is needed; {REBUILD}"
            )
        for name in dict.fromkeys((*FILES, *files)):
            path = self.folder / name
            if not path.is_file() or _digest(path) != files.get(name):
                raise ValueError(f"{path} is missing or damaged (its checksum differs); {REBUILD}")
        import faiss

        self.faiss = faiss.read_index(str(self.folder / "clips.faiss"))
        table = np.load(self.folder / "clips.npz")
        self.recording_of, self.start_s = table["recording"], table["start_s"]
        self.first_frame, self.n_frames, self.piece_of = table["first_frame"], table["n_frames"], table["piece"]
        self.frames = np.load(self.folder / "frames.npy", mmap_mode="r")  # (all frames, P)
        self.recordings = [json.loads(line) for line in read_lines(self.folder / "recordings.jsonl")]
        self.windows = None  # FAISS, of windows of 2 s
        if set(WINDOW_FILES) <= set(files):
            self.windows = faiss.read_index(str(self.folder / "windows.faiss"))
            table = np.load(self.folder / "windows.npz")
            self.clip_of_window, self.window_start_s = table["clip"], table["start_s"]

    def __len__(self) -> int:
        return len(self.start_s)

    @property
    def embedder(self) -> str:
        """Name of the embedding; queries must have the same."""
        return self.about["embedder"]

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits that identify the contents."""
        return hashlib.sha256(json.dumps(self.about["files"], sort_keys=True).encode()).hexdigest()[:12]

    @property
    def similarity_threshold(self) -> float:
        """Similarity to the nearest clip that 1 % of clips of unrelated music exceed."""
        return self.about["base_rate"]["similarity_99"]

    @property
    def score_threshold(self) -> float:
        """Score of the best passage that 1 % of clips of unrelated music exceed."""
        return self.about["base_rate"]["score_99"]

    @property
    def window_threshold(self) -> float:
        """Similarity of the nearest window of 2 s that 1 % of unrelated clips exceed; 1 without a base rate."""
        return self.about["base_rate"].get("window_similarity_99", 1.0)

    def check_embedder(self, name: str) -> None:
        """Raise ValueError unless embeddings with this ``name`` can be compared with the index."""
        if "bfloat16" in name:
            raise ValueError(
                "embeddings by CLAP in bfloat16 cannot be compared with an index; load CLAP in float32 or float16"
            )
        if name.startswith(self.embedder + "-"):
            raise ValueError(
                f"{self.folder} holds embeddings at the full rate of CLAP, the model's is lower ({name}); build the "
                "index again with `musicldm novelty index --model MODEL`, or with music_rate of ClapEmbedder"
            )
        if name != self.embedder:
            raise ValueError(
                f"{self.folder} was made with the embedding {self.embedder}, the model has {name}; "
                "give the model that the index was made with, or build an index for this one"
            )

    def search(self, embeddings: np.ndarray, count: int = SECOND_CHECK) -> tuple[np.ndarray, np.ndarray]:
        """Cosine similarities and clip numbers (N, count), nearest first, of unit-norm ``embeddings (N, D)``.

        Raises:
            ValueError: if D is not the index's, or a row is not finite.
        """
        similarities, clips = self.faiss.search(_checked(embeddings, self.faiss.d), min(count, len(self)))
        return similarities.clip(-1, 1), clips

    def search_windows(self, embeddings: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Cosine similarities and numbers (N, count) of windows, nearest first, of ``embeddings (N, D)`` of windows.

        Raises:
            ValueError: if the index holds no windows, D is not theirs, or a row is not finite.
        """
        if self.windows is None:
            raise ValueError(f"{self.folder} was built without windows of 2 s; {REBUILD}")
        squares, windows = self.windows.search(_checked(embeddings, self.windows.d), min(count, self.windows.ntotal))
        return (1 - squares / 2).clip(-1, 1), windows

    def nearest(self, embeddings: np.ndarray, count: int = 1) -> list[list[Neighbour]]:
        """The nearest clips for each row of ``embeddings (N, D)``."""
        found = zip(*self.search(embeddings, count), strict=True)
        return [[self.neighbour(int(c), float(s)) for s, c in zip(*row, strict=True) if c >= 0] for row in found]

    def neighbour(self, clip: int, similarity: float) -> Neighbour:
        recording = self.recordings[int(self.recording_of[clip])]
        return Neighbour(clip, similarity, recording, float(self.start_s[clip]))

    def window(self, number: int, similarity: float) -> Neighbour:
        """The window ``number``, with its clip and start."""
        clip = int(self.clip_of_window[number])
        return self.neighbour(clip, similarity)._replace(start_s=float(self.window_start_s[number]))

    def clip_frames(self, clip: int) -> np.ndarray:
        """Semitone bands (T, P) of one clip."""
        first = int(self.first_frame[clip])
        return np.asarray(self.frames[first : first + int(self.n_frames[clip])])

    def align(self, query: np.ndarray, clips: np.ndarray) -> Match:
        """The best passage of ``query (T, P)`` in the frames of ``clips``; ``candidate`` is the clip's number."""
        clips = [int(clip) for clip in clips if clip >= 0]
        found = best_match(query, [self.clip_frames(clip) for clip in clips])
        clip = clips[found.candidate]
        return found._replace(candidate=clip, start_s=found.start_s + float(self.start_s[clip]))


def partial(folder: Path) -> Path:
    """The working folder of an index that is not finished."""
    return folder.with_name(fitting(folder.parent, folder.name, len(".partial")) + ".partial")


def write_index(
    folder: Path,
    embeddings: np.ndarray,
    frames: list[np.ndarray],
    table: dict,
    about: dict,
    windows: Windows | None = None,
) -> None:
    """Write all files of an index; ``index.json``, which makes it valid, is written last."""
    import faiss

    faiss.write_index(make_faiss(embeddings), str(folder / "clips.faiss"))
    lengths = np.array([len(each) for each in frames], np.int32)
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    np.save(folder / "frames.npy", np.concatenate(frames).reshape(-1, BANDS))
    recordings = table.pop("recordings")
    np.savez(folder / "clips.npz", first_frame=first, n_frames=lengths, **table)
    text = "".join(json.dumps(recording) + "\n" for recording in recordings)
    (folder / "recordings.jsonl").write_text(text, encoding="utf-8")
    if windows is not None:
        faiss.write_index(make_faiss(windows.embeddings, small=True), str(folder / "windows.faiss"))
        np.savez(folder / "windows.npz", clip=windows.clip, start_s=windows.start_s)
    finish(folder, about)


def finish(folder: Path, about: dict) -> None:
    """Write ``index.json`` with checksums of the other files."""
    files = {name: _digest(folder / name) for name in (*FILES, *WINDOW_FILES) if (folder / name).is_file()}
    record = {"version": VERSION, "frames_per_s": FRAMES_PER_S, **about, "files": files}
    write_whole(folder / "index.json", (json.dumps(record, indent=1) + "\n").encode())


def _checked(embeddings: np.ndarray, width: int) -> np.ndarray:
    """``embeddings`` as FAISS takes them; ValueError unless they are finite rows of ``width``."""
    embeddings = np.ascontiguousarray(embeddings, np.float32)
    if embeddings.ndim != 2 or embeddings.shape[1] != width:
        raise ValueError(f"the index holds vectors of {width} dimensions, got {embeddings.shape}")
    if not np.isfinite(embeddings).all():
        raise ValueError("the query's embedding holds NaN or infinity; give finite audio")
    return embeddings


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
