"""Are copies found? Planted copies of every kind against an index, beside other music treated alike.

    python -m benchmarks.copies FOLDER --work DIR --out benchmarks/results/copies.json

FOLDER is an audio folder with ``piece_id`` in its metadata (``recipes.mini.data`` makes one as ``train``). One clip
of each of ``--pieces`` pieces is indexed in DIR; copies of some of them are changed and looked for, and so are clips of
pieces outside the index, changed in the same ways. The threshold is what one of those in a hundred exceeds, all kinds
together; recall is the share of copies above it: by the embeddings of clips, by those of windows of 2 s, by the second
check and by all three together. A quarter of the pieces is set aside: the check's constants were chosen on these
(``--tuning``). A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from scipy.signal import butter, sosfilt

from benchmarks.results import keep
from musicldm.audio import read_audio, write_whole
from musicldm.cli.novelty import load_embedder
from musicldm.data.metadata import metadata_rows
from musicldm.generate.environment import model_revision
from musicldm.generate.reconstruct import reconstruct
from musicldm.models.loading import bundled_models
from musicldm.novelty.alignment import pitch_frames
from musicldm.novelty.build import build_index
from musicldm.novelty.check import judge
from musicldm.novelty.index import VERSION, NoveltyIndex
from musicldm.novelty.windows import embed_windows, query_windows
from musicldm.pipelines.text_to_music import MusicLDMPipeline

OFFSET_S = 3.37  # no multiple of a frame or a beat
PHRASE_S = 3.0
MP3_BITS_PER_S = 64_000
AT_ONCE = 16  # clips embedded at a time
MEASURES = {"similarity": "embedding", "window_similarity": "windows", "score": "second_check"}


def level(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.square(waveform).mean()))


def noisy(waveform: np.ndarray, decibels: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(size=len(waveform))
    return waveform + noise * level(waveform) * 10 ** (-decibels / 20)


def mixed(waveform: np.ndarray, other: np.ndarray, decibels: float) -> np.ndarray:
    """``waveform`` at ``decibels`` beside ``other``."""
    n = min(len(waveform), len(other))
    return other[:n] + waveform[:n] * level(other) / max(level(waveform), 1e-9) * 10 ** (decibels / 20)


def low_passed(waveform: np.ndarray, rate: int, cutoff_hz: float) -> np.ndarray:
    return sosfilt(butter(8, cutoff_hz, fs=rate, output="sos"), waveform)


def through_mp3(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Encoded and decoded at a constant 64 kbit/s."""
    file = io.BytesIO()
    waveform = waveform / max(1.0, np.abs(waveform).max())
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT"}
    # libsndfile takes a fraction of the way from the highest rate (160 kbit/s below 32 kHz) down to the lowest (8)
    soundfile.write(file, waveform, rate, compression_level=(160_000 - MP3_BITS_PER_S) / 152_000, **options)
    bits_per_s = 8 * file.tell() * rate / len(waveform)
    if not 0.9 < bits_per_s / MP3_BITS_PER_S < 1.1:
        raise RuntimeError(f"the MP3 file has {bits_per_s:.0f} bits per second instead of {MP3_BITS_PER_S}")
    file.seek(0)
    return soundfile.read(file)[0]


def phrase(waveform: np.ndarray, other: np.ndarray, rate: int) -> np.ndarray:
    """``other`` with 3 s of ``waveform`` in the middle."""
    n, first = round(PHRASE_S * rate), round(OFFSET_S * rate)
    return np.concatenate([other[:first], waveform[first : first + n], other[first + n :]])


@functools.cache
def mini() -> MusicLDMPipeline:
    return MusicLDMPipeline.from_pretrained("mini")


def played_again(waveform: np.ndarray, rate: int) -> np.ndarray:
    """As a model that knew it by heart would play it: through VAE and vocoder."""
    own = mini().sampling_rate
    heard = librosa.resample(waveform, orig_sr=rate, target_sr=own) if rate != own else waveform
    played = reconstruct(heard, mini().vae, mini().vocoder).waveform
    return librosa.resample(played, orig_sr=own, target_sr=rate) if rate != own else played


KINDS: dict[str, Callable] = {  # of waveform, other waveform, rate, generator
    "unchanged": lambda x, other, rate, rng: x,
    "gain -12 dB": lambda x, other, rate, rng: 0.25 * x,
    "noise at 10 dB": lambda x, other, rate, rng: noisy(x, 10, rng),
    "+2 semitones": lambda x, other, rate, rng: librosa.effects.pitch_shift(x, sr=rate, n_steps=2),
    "-2 semitones": lambda x, other, rate, rng: librosa.effects.pitch_shift(x, sr=rate, n_steps=-2),
    "tempo +4 %": lambda x, other, rate, rng: librosa.effects.time_stretch(x, rate=1.04),
    "tempo -4 %": lambda x, other, rate, rng: librosa.effects.time_stretch(x, rate=0.96),
    "offset 3.37 s": lambda x, other, rate, rng: x[round(OFFSET_S * rate) :],
    "low-pass 4 kHz": lambda x, other, rate, rng: low_passed(x, rate, 4000),
    "MP3 64 kbit/s": lambda x, other, rate, rng: through_mp3(x, rate),
    "-6 dB under other music": lambda x, other, rate, rng: mixed(x, other, -6),
    "3 s inside other music": lambda x, other, rate, rng: phrase(x, other, rate),
    "VAE and vocoder": lambda x, other, rate, rng: played_again(x, rate),
    "VAE and vocoder, 5 s": lambda x, other, rate, rng: played_again(x[: 5 * rate], rate),
}


def is_for_tuning(piece_id: str) -> bool:
    """Whether a piece is one of the quarter that the check's constants were chosen on."""
    return hashlib.sha256(f"copies {piece_id}".encode()).digest()[0] < 64


def draw_pieces(folder: Path, seed: int, tuning: bool = False) -> list[dict]:
    """The first clip of each piece of ``folder`` that is, or is not, for tuning; pieces shuffled."""
    first = {}
    for row in metadata_rows(folder):
        if row["duration_s"] > 10 and is_for_tuning(row["piece_id"]) == tuning:
            first.setdefault(row["piece_id"], row)
    rows = [first[piece] for piece in sorted(first)]
    random.Random(seed).shuffle(rows)
    return rows


def embed(waveforms: list[np.ndarray], rate: int, embedder) -> np.ndarray:
    """Embeddings (N, D) of ``waveforms``, equally long ones together."""
    rows = np.zeros((len(waveforms), embedder.size), np.float32)
    lengths = np.array([len(waveform) for waveform in waveforms])
    for length in np.unique(lengths):
        alike = np.flatnonzero(lengths == length)
        for some in np.split(alike, range(AT_ONCE, len(alike), AT_ONCE)):
            rows[some] = embedder(torch.from_numpy(np.stack([waveforms[i] for i in some])), rate)
    return rows


def look_up(waveforms: list[np.ndarray], rate: int, index: NoveltyIndex, embedder, sources: list[str]) -> list[dict]:
    """Of each waveform the nearest clip, the nearest window and the best passage, with the recordings that they are of,
    and how near its source comes.
    """
    waveforms = [np.asarray(waveform, np.float32) for waveform in waveforms]
    similarities, clips = index.search(embed(waveforms, rate, embedder))
    windows = [query_windows(waveform, rate, embedder)[1] for waveform in waveforms]
    every = [window for some in windows for window in some]
    in_windows, numbers = (column[:, 0] for column in index.search_windows(embed_windows(every, rate, embedder)))
    of_query = np.split(np.arange(len(every)), np.cumsum([len(some) for some in windows])[:-1])
    found = []
    for i, (waveform, source) in enumerate(zip(waveforms, sources, strict=True)):
        match = index.align(pitch_frames(waveform, rate), clips[i])
        file_of = [index.neighbour(int(clip), 0.0).recording["file"] for clip in clips[i]]
        nearest = of_query[i][in_windows[of_query[i]].argmax()]
        found.append(
            {
                "similarity": float(similarities[i, 0]),
                "nearest": file_of[0],
                "source": source,
                "in_nearest_100": source in file_of[:100],
                "window_similarity": float(in_windows[nearest]),
                "window": index.window(int(numbers[nearest]), 0.0).recording["file"],
                "score": match.score,
                "passage": index.neighbour(match.candidate, 0.0).recording["file"],
            }
        )
    return found


def rank(found: list[dict], others: list[dict]) -> np.ndarray:
    """The largest share of ``others`` that each of ``found`` exceeds in one of `MEASURES`."""
    shares = []
    for name in MEASURES:
        values = np.sort([other[name] for other in others])
        shares.append(np.searchsorted(values, [f[name] for f in found]) / len(values))
    return np.max(shares, axis=0)


def table(copies: dict[str, list[dict]], others: dict[str, list[dict]], base_rate: dict) -> dict:
    """Thresholds at 1 % false positives over all kinds, and for each kind recall and what was named.

    ``together`` is what one of the three measures finds when all have thresholds that as many exceed, so that one in a
    hundred exceeds any. ``called`` are the verdicts on other music at the index's own thresholds, from ``base_rate``.
    """
    pooled = [found for kind in others.values() for found in kind]
    thresholds = {name: float(np.quantile([f[name] for f in pooled], 0.99)) for name in MEASURES}
    most = float(np.quantile(rank(pooled, pooled), 0.99))

    def rates(found: list[dict], what: str) -> dict[str, float]:
        told = {
            f"{what}_{title}": np.mean([f[name] > thresholds[name] for f in found]) for name, title in MEASURES.items()
        }
        told[f"{what}_together"] = np.mean(rank(found, pooled) > most)
        return {name: float(value) for name, value in told.items()}

    def named(found: list[dict], what: str) -> float:
        return float(np.mean([f[what] == f["source"] for f in found]))

    kinds = {}
    for kind, found in copies.items():
        kinds[kind] = {
            **rates(found, "recall"),
            **rates(others[kind], "false_positives"),
            "nearest_is_the_source": named(found, "nearest"),
            "source_in_nearest_100": float(np.mean([f["in_nearest_100"] for f in found])),
            "window_is_of_the_source": named(found, "window"),
            "passage_is_of_the_source": named(found, "passage"),
        }
    called = [judge(*(f[name] for name in ("similarity", "score", "window_similarity")), base_rate) for f in pooled]
    shares = {verdict: called.count(verdict) / len(called) for verdict in ("copy", "close", "new")}
    return {"thresholds": thresholds, "called": shares, "kinds": kinds}


def show(kinds: dict[str, dict]) -> str:
    """Recall of each kind as a table."""
    columns = {
        "embedding": "Clip embedding",
        "windows": "Windows",
        "second_check": "Second check",
        "together": "Together",
    }
    lines = [f"| Copy | {' | '.join(columns.values())} |", "| --- |" + " ---: |" * len(columns)]
    for kind, values in kinds.items():
        lines.append(f"| {kind} | " + " | ".join(f"{values[f'recall_{name}']:.2f}" for name in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the collection and its index")
    parser.add_argument("--model", default="mini", help="whose CLAP to use")
    parser.add_argument("--pieces", type=int, default=400, help="in the index")
    parser.add_argument("--queries", type=int, default=10, help="copies of each kind, and other clips of each kind")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tuning", action="store_true", help="take the quarter of the pieces that is kept for tuning")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = draw_pieces(options.folder, options.seed, options.tuning)
    inside, outside = rows[: options.pieces], rows[options.pieces :]
    if len(outside) < options.queries:
        raise SystemExit(f"{len(rows)} pieces leave {len(outside)} outside the index; lower --pieces or --queries")
    embedder = load_embedder(options.model, torch.device("cpu"))
    if not (options.work / "index").exists():
        collection = options.work / "collection"
        collection.mkdir(parents=True, exist_ok=True)
        for row in inside:
            linked = collection / row["file_name"]
            linked.parent.mkdir(parents=True, exist_ok=True)
            if not linked.exists():
                linked.symlink_to((options.folder / row["file_name"]).resolve())
        (collection / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in inside))
        build_index(collection, options.work / "index", embedder)
    index = NoveltyIndex(options.work / "index")
    index.check_embedder(embedder.name)
    rate = embedder.feature_extractor.sampling_rate

    def waveform_of(row: dict) -> np.ndarray:
        return read_audio(options.folder / row["file_name"], rate)[0]

    copies, others = {}, {}
    for number, (kind, change) in enumerate(KINDS.items()):
        if kind not in options.kinds:
            continue
        # a stopped run goes on with the next kind
        made = options.work / f"found-{VERSION}-{options.queries}-{number}.json"
        if not made.is_file():
            rng = np.random.default_rng(options.seed)
            changed, pair = {"copies": [], "others": []}, {}
            for i in range(options.queries):
                background = waveform_of(outside[(i + 1) % len(outside)])
                for name, row in (("copies", inside[i]), ("others", outside[i])):
                    changed[name].append(change(waveform_of(row), background, rate, rng))
            for name, rows in (("copies", inside), ("others", outside)):
                sources = [row["file_name"] for row in rows[: options.queries]]
                pair[name] = look_up(changed[name], rate, index, embedder, sources)
            write_whole(made, json.dumps(pair).encode())
        pair = json.loads(made.read_text())
        copies[kind], others[kind] = pair["copies"], pair["others"]
    report = {
        "model": options.model,
        "model_revision": model_revision(bundled_models().get(options.model, Path(options.model))),
        "indexed_clips": len(index),
        "queries_of_each_kind": options.queries,
        "pieces_for_tuning": options.tuning,
        **table(copies, others, index.about["base_rate"]),
    }
    print(json.dumps(report, indent=1))
    print(show(report["kinds"]), file=sys.stderr)
    if options.out:
        keep(options.out, report)


if __name__ == "__main__":
    main()
