"""Are copies found? Planted copies of every kind against an index, beside other music treated alike.

    python -m benchmarks.copies FOLDER --work DIR --out benchmarks/results/copies.json

FOLDER is an audio folder with ``piece_id`` in its metadata (``benchmarks.mini_data`` makes one as ``train``). One clip
of each of ``--pieces`` pieces is indexed in DIR; copies of some of them are changed and looked for, and so are clips of
pieces outside the index, changed in the same ways. The threshold is what one of those in a hundred exceeds, all kinds
together; recall is the share of copies above it. A quarter of the pieces is set aside: the check's constants were
chosen on these (``--tuning``). A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
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
from musicldm.data.clips import metadata_rows
from musicldm.info import model_revision
from musicldm.loading import bundled_models
from musicldm.novelty.alignment import pitch_frames
from musicldm.novelty.build import build_index
from musicldm.novelty.index import NoveltyIndex

OFFSET_S = 3.37  # no multiple of a frame or a beat
PHRASE_S = 3.0
MP3_BITS_PER_S = 64_000


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


def look_up(waveform: np.ndarray, rate: int, index: NoveltyIndex, embedder, source: str) -> dict:
    """The nearest clip and the best passage, with the recordings that they are of, and how near ``source`` comes."""
    waveform = np.asarray(waveform, np.float32)
    embedding = embedder(torch.from_numpy(waveform)[None], rate)
    similarities, clips = index.search(embedding)
    match = index.align(pitch_frames(waveform, rate), clips[0])
    file_of = [index.neighbour(int(clip), 0.0).recording["file"] for clip in clips[0]]
    return {
        "similarity": float(similarities[0][0]),
        "nearest": file_of[0],
        "source": source,
        "in_nearest_100": source in file_of[:100],
        "score": match.score,
        "passage": index.neighbour(match.candidate, 0.0).recording["file"],
    }


def table(copies: dict[str, list[dict]], others: dict[str, list[dict]]) -> dict:
    """Thresholds at 1 % false positives over all kinds, and for each kind recall and what was named."""
    pooled = [found for kind in others.values() for found in kind]
    thresholds = {name: float(np.quantile([f[name] for f in pooled], 0.99)) for name in ("similarity", "score")}

    def rate(found: list[dict], name: str) -> float:
        return float(np.mean([f[name] > thresholds[name] for f in found]))

    kinds = {}
    for kind, found in copies.items():
        kinds[kind] = {
            "recall_embedding": rate(found, "similarity"),
            "recall_second_check": rate(found, "score"),
            "false_positives_embedding": rate(others[kind], "similarity"),
            "false_positives_second_check": rate(others[kind], "score"),
            "nearest_is_the_source": float(np.mean([f["nearest"] == f["source"] for f in found])),
            "source_in_nearest_100": float(np.mean([f["in_nearest_100"] for f in found])),
            "passage_is_of_the_source": float(np.mean([f["passage"] == f["source"] for f in found])),
        }
    return {"thresholds": thresholds, "kinds": kinds}


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
        build_index(collection, options.work / "index", embedder, base_clips=50)
    index = NoveltyIndex(options.work / "index")
    index.check_embedder(embedder.name)
    rate = embedder.feature_extractor.sampling_rate

    def waveform_of(row: dict) -> np.ndarray:
        return read_audio(options.folder / row["file_name"], rate)[0]

    copies, others = {}, {}
    for number, (kind, change) in enumerate(KINDS.items()):
        if kind not in options.kinds:
            continue
        made = options.work / f"found-{options.queries}-{number}.json"  # a stopped run goes on with the next kind
        if not made.is_file():
            rng = np.random.default_rng(options.seed)
            pair = {"copies": [], "others": []}
            for i in range(options.queries):
                background = waveform_of(outside[(i + 1) % len(outside)])
                for name, row in (("copies", inside[i]), ("others", outside[i])):
                    changed = change(waveform_of(row), background, rate, rng)
                    pair[name].append(look_up(changed, rate, index, embedder, row["file_name"]))
            write_whole(made, json.dumps(pair).encode())
        pair = json.loads(made.read_text())
        copies[kind], others[kind] = pair["copies"], pair["others"]
    report = {
        "model": options.model,
        "model_revision": model_revision(bundled_models().get(options.model, Path(options.model))),
        "indexed_clips": len(index),
        "queries_of_each_kind": options.queries,
        "pieces_for_tuning": options.tuning,
        **table(copies, others),
    }
    print(json.dumps(report, indent=1))
    if options.out:
        keep(options.out, report)


if __name__ == "__main__":
    main()
