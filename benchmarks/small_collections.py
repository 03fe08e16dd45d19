"""How often is music by strangers called a copy, where a collection has 8 to 50 recordings? And are copies found?

    python -m benchmarks.small_collections FOLDER ... --work DIR --background musicldm/novelty/background.json \
        --out benchmarks/results/small_collections.json

Each FOLDER holds recordings of pieces that have nothing to do with each other, named ``SOURCE__NAME``; those of names
without a source are ``real``. All are about 45 s long, and compared as a check compares them. From the pairs of all but
the real ones the background is fitted. It is tested on collections drawn at random, with backgrounds fitted to what
is not in the test: real recordings, and each half of the sources by the other; and on collections of one source.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.copies import KINDS
from benchmarks.results import keep
from musicldm.audio import read_audio, write_whole
from musicldm.novelty.alignment import BLOCK, FRAMES_PER_S, best_match, pitch_frames, whiten
from musicldm.novelty.alignment import _rough_scores as rough_scores
from musicldm.novelty.background import passage_test

RATE, RECORDING_S, CLIP_S = 22_050, 45, 10
LEVEL = 0.45  # the tail begins here
FINE_FROM = 0.33  # pairs of clips that are compared at every tempo
SIZES = (8, 12, 20, 35, 50)
DRAWN = 300  # collections of each size
REPLICATES = 200


def pair_scores(waveforms: list[np.ndarray]) -> np.ndarray:
    """Best score (N, Q, N): of the q-th clip of each recording, half a clip apart, in each other; -1 where none is."""
    n = CLIP_S * RATE
    kept = [[x[s : s + n] for s in range(0, len(x), n) if len(x) - s >= n // 2 or not s] for x in waveforms]
    owner = np.repeat(np.arange(len(kept)), [len(clips) for clips in kept])
    frames = [pitch_frames(clip, RATE) for clips in kept for clip in clips]
    white = [whiten(each) for each in frames]
    starts = [sorted({*range(0, max(0, len(x) - n) + 1, n // 2), max(0, len(x) - n)}) for x in waveforms]
    scores = np.full((len(kept), max(map(len, starts)), len(kept)), -1.0)
    for i, waveform in enumerate(waveforms):
        for q, start in enumerate(starts[i]):
            query = pitch_frames(waveform[start : start + n], RATE)
            blocks = range(0, len(white), BLOCK)
            rough = np.concatenate([rough_scores(whiten(query), white[b : b + BLOCK]) for b in blocks])
            rough[owner == i] = -1
            for k in np.flatnonzero(rough > FINE_FROM):
                rough[k] = best_match(query, [frames[k]]).score  # a check does so with the ten highest
            np.maximum.at(scores[i, q], owner, rough)
    return scores


def fit(scores: np.ndarray, rng: np.random.Generator, replicates: int = 0) -> dict:
    """The background of ``scores (N, Q, N)``: how often recordings exceed the level, by how much, and how sure."""

    def tail(chosen: np.ndarray) -> tuple[float, float]:
        values = best[np.ix_(chosen, chosen)]
        values = values[chosen[:, None] != chosen[None]]
        above = values[values > LEVEL]
        return len(above) / len(values), float((above - LEVEL).mean())

    best = scores.max(axis=1)
    everyone = np.arange(len(best))
    rate, scale = tail(everyone)
    clips = scores[(scores > -1).nonzero()]
    growth = np.log(rate / (clips > LEVEL).mean()) / np.log(RECORDING_S / CLIP_S)
    drawn = [tail(rng.choice(everyone, len(everyone))) for _ in range(replicates)]
    return {
        "recordings": len(best),
        "recording_s": RECORDING_S,
        "level": LEVEL,
        "rate": round(rate, 6),
        "scale": round(scale, 5),
        "growth": round(float(growth), 3),
        "replicates": [[round(a, 6), round(b, 5)] for a, b in drawn],
    }


class Drawn(SimpleNamespace):
    """What `passage_test` asks of an index, for ``chosen`` recordings."""

    def __init__(self, best: np.ndarray, chosen: np.ndarray):
        own = best[np.ix_(chosen, chosen)].max(axis=1).tolist()
        super().__init__(
            piece_of=np.arange(len(chosen)),
            n_frames=np.full(len(chosen), RECORDING_S * FRAMES_PER_S),
            about={"base_rate": {"clips": len(chosen), "piece_scores": own}},
        )

    def __len__(self) -> int:
        return len(self.piece_of)


def false_alarms(best: np.ndarray, inside: np.ndarray, strangers: np.ndarray, size: int, shipped: dict, rng) -> dict:
    """Share of ``strangers`` called copies of collections of ``size`` drawn from ``inside``; the same of before."""
    now, before, thresholds, short = [], [], [], []
    for _ in range(DRAWN):
        chosen = rng.permutation(inside)[:size]
        others = np.setdiff1d(strangers, chosen)
        nearest = best[np.ix_(others, chosen)].max(axis=1)
        thresholds.append(passage_test(Drawn(best, chosen), RECORDING_S, shipped).threshold)
        short.append(passage_test(Drawn(best, chosen), CLIP_S, shipped).threshold)
        now.append((nearest > thresholds[-1]).mean())
        before.append((nearest > best[np.ix_(chosen, chosen)].max()).mean())
    told = {
        "threshold": np.mean(thresholds),
        "threshold_of_10_s": np.mean(short),
        "false_alarms": np.mean(now),
        "largest_own_score": np.mean(before),
    }
    return {name: round(float(value), 4) for name, value in told.items()}


def planted(waveforms: list[np.ndarray], chosen: np.ndarray, thresholds: dict[int, float]) -> dict:
    """Share of copies of 10 s of ``chosen`` recordings, changed in each way, that exceed the threshold of each size."""
    n, found = CLIP_S * RATE, {}
    rng = np.random.default_rng(0)
    clips = {int(i): waveforms[i][n : 2 * n] for i in chosen if len(waveforms[i]) >= 2 * n}
    names = list(clips)
    for kind, change in KINDS.items():
        scores = []
        for k, name in enumerate(names):
            changed = change(clips[name], clips[names[(k + 1) % len(names)]], RATE, rng)
            copy, original = (pitch_frames(np.asarray(x, np.float32), RATE) for x in (changed, clips[name]))
            scores.append(best_match(copy, [original]).score)
        found[kind] = {str(size): float(np.mean(np.array(scores) > at)) for size, at in thresholds.items()}
        found[kind]["copies"] = len(scores)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True, help="folder for the scores of all pairs")
    parser.add_argument("--background", type=Path, help="file to write the background to")
    parser.add_argument("--copies", type=int, default=40, help="recordings that copies are made of, real ones first")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    paths = [path for folder in options.folders for path in sorted(folder.iterdir())]
    paths = [path for path in paths if path.suffix in (".flac", ".ogg", ".wav")]
    waveforms = [read_audio(path, RATE)[0] for path in paths]
    source = np.array([path.stem.split("__")[0] if "__" in path.stem else "real" for path in paths])
    made = options.work / "scores.npz"
    if not made.is_file():
        options.work.mkdir(parents=True, exist_ok=True)
        np.savez(made, scores=pair_scores(waveforms))
    scores = np.load(made)["scores"]
    best, rng = scores.max(axis=1), np.random.default_rng(0)
    everyone, real = np.arange(len(best)), np.flatnonzero(source == "real")
    made_up = np.flatnonzero(source != "real")

    def fitted(chosen: np.ndarray, replicates: int = 0) -> dict:
        return fit(scores[chosen][:, :, chosen], rng, replicates)

    shipped = fitted(made_up, REPLICATES)
    name = f"{len(made_up)} renderings of {len(set(source[made_up]))} collections of scores, 2026"
    if options.background:
        write_whole(options.background, (json.dumps({"name": name, **shipped}) + "\n").encode())
    halves = [np.flatnonzero(np.isin(source, sorted(set(source))[half::2])) for half in (0, 1)]
    report = {"recordings": len(best), "real": len(real), "background": {**shipped, "replicates": REPLICATES}}
    report["random"] = {n: false_alarms(best, everyone, everyone, n, shipped, rng) for n in SIZES}
    report["real_in_8_real"] = false_alarms(best, real, real, 8, shipped, rng)
    report["renderings_in_8_real"] = false_alarms(best, real, made_up, 8, shipped, rng)
    report["real_in_50_renderings"] = false_alarms(best, made_up, real, 50, shipped, rng)
    report["halves"] = [
        {n: false_alarms(best, halves[i], halves[i], n, fitted(halves[1 - i]), rng) for n in SIZES} for i in (0, 1)
    ]
    large = [name for name in sorted(set(source)) if (source == name).sum() > 10]
    of_source = {name: np.flatnonzero(source == name) for name in large}
    report["8_of_one_source"] = {
        name: false_alarms(best, chosen, chosen, 8, shipped, rng) for name, chosen in of_source.items()
    }
    thresholds = {n: report["random"][n]["threshold_of_10_s"] for n in SIZES}
    chosen = np.concatenate([real, rng.permutation(made_up)])[: options.copies]
    report["recall"] = planted(waveforms, chosen, thresholds)
    print(json.dumps(report, indent=1))
    if options.out:
        keep(options.out, report)


if __name__ == "__main__":
    main()
