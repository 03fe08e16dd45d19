"""How often is music by strangers called a copy, where a collection has 8 to 50 recordings? And are copies found?

    python -m benchmarks.small_collections_data SCORES --index index.csv --out DATA
    python -m benchmarks.small_collections DATA/many RECORDINGS --alike DATA/alike --work DIR \
        --background musicldm/novelty/background.json --out benchmarks/results/small_collections.json

Each FOLDER holds recordings of pieces that have nothing to do with each other, named ``SOURCE__NAME``; those of names
without a source are ``real``. All are about 45 s long, and compared as a check compares them. From the pairs of all but
the real ones the background is fitted. It is tested on collections drawn at random, with backgrounds fitted to what
is not in the test: real recordings, and each half of the sources by the other; and on collections of one source, whose
pieces are near-equal, of which the background knows nothing (``--alike``). Intervals (95 %) are over the strangers, or
the copies. A run that was stopped goes on with the next recording.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

from benchmarks.copies import KINDS
from benchmarks.results import keep
from musicldm.audio import read_audio, write_whole
from musicldm.evaluate.intervals import bootstrap, share
from musicldm.novelty.alignment import FRAMES_PER_S, matches, pitch_frames, rough_scores, whiten
from musicldm.novelty.background import passage_test

RATE, RECORDING_S, CLIP_S = 22_050, 45, 10
LATER_S = 3.37  # by which copies begin after a clip of the collection, in a second measurement
LEVEL = 0.45  # the tail begins here
FINE_FROM = 0.33  # pairs of clips that are compared at every tempo
SIZES = (8, 16, 35, 50)
DRAWN = 300  # collections of each size
REPLICATES = 200
HARDEST = "-6 dB under other music"
COPIES = 40  # of each other kind
CURVE = np.arange(0.4, 1.01, 0.05)
AT_ONCE = 10  # clips compared at every tempo


def pair_scores(waveforms: list[np.ndarray], work: Path) -> np.ndarray:
    """Best score (N, Q, N): of the q-th clip of each recording, half a clip apart, in each other; -1 where none is.

    Those of each recording are kept in ``work`` as they are made. Clips that score more than `FINE_FROM` roughly are
    compared at every tempo, as a check does with the ten highest.
    """
    work.mkdir(parents=True, exist_ok=True)
    n = CLIP_S * RATE
    kept = [[x[s : s + n] for s in range(0, len(x), n) if len(x) - s >= n // 2 or not s] for x in waveforms]
    owner = np.repeat(np.arange(len(kept)), [len(clips) for clips in kept])
    frames = [pitch_frames(clip, RATE) for clips in kept for clip in clips]
    white = [whiten(each) for each in frames]
    starts = [sorted({*range(0, max(0, len(x) - n) + 1, n // 2), max(0, len(x) - n)}) for x in waveforms]
    of_these = hashlib.sha256(np.concatenate(frames).tobytes()).hexdigest()[:12]
    scores = np.full((len(kept), max(map(len, starts)), len(kept)), -1.0)
    for i, waveform in enumerate(tqdm(waveforms, desc="pairs", unit="recording")):
        made = work / f"{of_these}-{i}.npy"
        if not made.is_file():
            rows = np.full((len(starts[i]), len(kept)), -1.0)
            for row, start in zip(rows, starts[i], strict=True):
                query = pitch_frames(waveform[start : start + n], RATE)
                found = rough_scores(query, white).astype(np.float64)
                found[owner == i] = -1
                near = np.flatnonzero(found > FINE_FROM)
                for some in np.split(near, range(AT_ONCE, len(near), AT_ONCE)):
                    found[some] = [match.score for match in matches(query, [frames[k] for k in some])]
                np.maximum.at(row, owner, found)
            np.save(made, rows)
        scores[i, : len(starts[i])] = np.load(made)
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
    now, before = np.full((2, DRAWN, len(best)), np.nan)
    thresholds, short, bases = [], [], []
    for draw in range(DRAWN):
        chosen = rng.permutation(inside)[:size]
        others = np.setdiff1d(strangers, chosen)
        nearest = best[np.ix_(others, chosen)].max(axis=1)
        test = passage_test(Drawn(best, chosen), RECORDING_S, shipped)
        thresholds.append(test.threshold)
        bases.append(test.basis)
        short.append(passage_test(Drawn(best, chosen), CLIP_S, shipped).threshold)
        now[draw, others] = nearest > test.threshold
        before[draw, others] = nearest > best[np.ix_(chosen, chosen)].max()
    asked = ~np.isnan(now).all(axis=0)
    called = bootstrap(np.mean, np.nanmean(now[:, asked], axis=0))
    told = {
        "threshold": np.mean(thresholds),
        "threshold_of_10_s": np.mean(short),
        "judged_by_collection": np.mean([basis == "collection" for basis in bases]),
        "false_alarms": called.value,
        "false_alarms_from": called.low,
        "false_alarms_to": called.high,
        "largest_own_score": np.nanmean(before),
    }
    return {name: round(float(value), 4) for name, value in told.items()}


def planted(waveforms: list[np.ndarray], kind: str, later_s: float, work: Path) -> np.ndarray:
    """Scores (N,) of copies of 10 s, changed as ``kind`` says, of those of ``waveforms`` that last 40 s.

    They are the second clip of 10 s, or begin ``later_s`` after it, and are compared with the first four clips. Those
    already in ``work`` are taken from there.
    """
    n, rng = CLIP_S * RATE, np.random.default_rng(0)
    waveforms = [waveform for waveform in waveforms if len(waveform) >= 4 * n]
    of_these = hashlib.sha256(b"".join(waveform.tobytes() for waveform in waveforms)).hexdigest()[:12]
    made = work / f"copies-{of_these}-{list(KINDS).index(kind)}-{later_s}.npy"
    if not made.is_file():
        first = n + round(later_s * RATE)
        music, scores = [waveform[first : first + n] for waveform in waveforms], []
        for k, original in enumerate(tqdm(music, desc=kind, unit="copy")):
            changed = KINDS[kind](original, music[(k + 1) % len(music)], RATE, rng)
            clips = [pitch_frames(waveforms[k][i * n : (i + 1) * n], RATE) for i in range(4)]
            scores.append(max(match.score for match in matches(pitch_frames(np.float32(changed), RATE), clips)))
        np.save(made, scores)
    return np.load(made)


def recall(waveforms: list[np.ndarray], chosen: np.ndarray, thresholds: dict[int, float], work: Path) -> dict:
    """Shares of planted copies, with intervals, that exceed the threshold of each size: kinds, and copies that begin
    between two clips of the collection. Of the hardest kind there are as many as are ``chosen``, of others `COPIES`.
    """
    report = {}
    for kind, later_s in [*((kind, 0.0) for kind in KINDS), (HARDEST, LATER_S)]:
        some = chosen if kind == HARDEST else chosen[:COPIES]
        scores = planted([waveforms[i] for i in some], kind, later_s, work)
        shares = {size: share(scores > at) for size, at in thresholds.items()}
        name = kind if later_s == 0 else f"{kind}, {later_s} s later"
        report[name] = {str(size): [round(float(x), 3) for x in each[:3]] for size, each in shares.items()}
        report[name]["copies"] = len(scores)
        # what would be found at other thresholds
        report[name]["at"] = {f"{at:.2f}": round(float((scores > at).mean()), 3) for at in CURVE}
    return report


def of_alike(folder: Path, work: Path, shipped: dict, rng: np.random.Generator) -> dict:
    """False alarms of collections of one source in ``folder``, by strangers of the same."""
    report = {}
    of_source: dict[str, list[Path]] = {}
    for path in recordings(folder):
        of_source.setdefault(path.stem.split("__")[0], []).append(path)
    for source, paths in of_source.items():
        best = pair_scores([read_audio(path, RATE)[0] for path in paths], work / source).max(axis=1)
        everyone = np.arange(len(paths))
        sizes = [size for size in SIZES if size <= len(paths) - 8]
        report[source] = {"recordings": len(paths)}
        report[source] |= {str(n): false_alarms(best, everyone, everyone, n, shipped, rng) for n in sizes}
    return report


def recordings(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix in (".flac", ".ogg", ".wav")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True, help="folder for the scores of all pairs")
    parser.add_argument("--alike", type=Path, help="folder of many recordings of sources whose pieces are near-equal")
    parser.add_argument("--background", type=Path, help="file to write the background to")
    parser.add_argument("--copies", type=int, default=120, help="recordings that copies are made of, real ones first")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    paths = [path for folder in options.folders for path in recordings(folder)]
    waveforms = [read_audio(path, RATE)[0] for path in paths]
    source = np.array([path.stem.split("__")[0] if "__" in path.stem else "real" for path in paths])
    scores = pair_scores(waveforms, options.work / "many")
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
    if options.alike:
        report["alike"] = of_alike(options.alike, options.work, shipped, rng)
    thresholds = {n: report["random"][n]["threshold_of_10_s"] for n in SIZES}
    chosen = np.concatenate([real, np.random.default_rng(0).permutation(made_up)])[: options.copies]
    report["recall"] = recall(waveforms, chosen, thresholds, options.work)
    print(json.dumps(report, indent=1))
    if options.out:
        keep(options.out, report)


if __name__ == "__main__":
    main()
