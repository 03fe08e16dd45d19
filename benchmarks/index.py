"""How large, fast and exact is an index of 1,000 hours? Synthetic unit vectors in the number and shape of CLAP's.

    python -m benchmarks.index --out benchmarks/results/index.json
    python -m benchmarks.index --windows --out benchmarks/results/index_windows.json
    python -m benchmarks.index --second-check INDEX --out benchmarks/results/index_second_check.json

The vectors lie in clusters of a normal mixture in a subspace, as embeddings of music do, plus noise in all dimensions.
They are those of clips of 10 s, or with ``--windows`` of windows of 2 s, kept with 8 bits a number. Recall is the share
of the exact nearest that the index also names. The third command times the second check of an index of music: what one
clip of it takes against 100 of the others and against as many as a check compares.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.results import keep
from musicldm.novelty.index import CELLS_VISITED, SECOND_CHECK, NoveltyIndex, make_faiss
from musicldm.novelty.windows import HOP_S

CLIP_S = 10.0
AT_ONCE = 100_000  # vectors


def synthetic(count: int, width: int, rank: int, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors ``(count, width)`` float16, as a build keeps those of windows."""
    basis = rng.normal(size=(rank, width)).astype(np.float32)
    centres = rng.normal(size=(clusters, rank)).astype(np.float32)
    vectors = np.empty((count, width), np.float16)
    for first in range(0, count, AT_ONCE):
        some = min(AT_ONCE, count - first)
        points = centres[rng.integers(clusters, size=some)]
        points += 0.5 * rng.standard_normal((some, rank), np.float32)
        rows = points @ basis
        rows += 0.1 * np.sqrt(rank) * rng.standard_normal((some, width), np.float32)
        vectors[first : first + some] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors


def exact_nearest(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Numbers (N, 100) of the ``vectors`` nearest to each of ``queries``, nearest first."""
    blocks = range(0, len(vectors), AT_ONCE)
    similarities = [queries @ vectors[first : first + AT_ONCE].astype(np.float32).T for first in blocks]
    return np.argsort(-np.concatenate(similarities, axis=1), axis=1)[:, :100]


def second_check(index: NoveltyIndex, queries: int) -> dict:
    """Processor seconds that the alignment of one clip takes, by the number of clips that it is compared with."""
    rng = np.random.default_rng(0)
    drawn = rng.permutation(len(index))[:queries]
    medians = {}
    for count in (100, SECOND_CHECK):
        times = []
        for clip in drawn.tolist():
            others = rng.permutation(np.setdiff1d(np.arange(len(index)), clip))[:count]
            started = time.process_time()
            index.align(index.clip_frames(clip), others)
            times.append(time.process_time() - started)
        medians[str(count)] = float(np.median(times))
    return {"clips": len(index), "clip_s": index.about["clip_s"], "second_check_s": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=1000.0)
    parser.add_argument("--windows", action="store_true", help="windows of 2 s instead of clips")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--second-check", type=Path, metavar="INDEX", help="time the alignment in this index instead")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.second_check:
        report = second_check(NoveltyIndex(options.second_check), min(options.queries, 50))
        print(json.dumps(report, indent=1))
        if options.out:
            keep(options.out, report)
        return
    import faiss

    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    count = round(3600 * options.hours / (HOP_S if options.windows else CLIP_S))
    vectors = synthetic(count + options.queries, options.width, 64, 2000, rng)
    vectors, queries = vectors[:count], vectors[count:].astype(np.float32)
    started = time.perf_counter()
    index = make_faiss(vectors, small=options.windows)
    build_s = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clips.faiss"
        faiss.write_index(index, str(path))
        size = path.stat().st_size
        index = faiss.read_index(str(path))
    exact = exact_nearest(queries, vectors)
    found, times = [], []
    for query in queries:
        started = time.perf_counter()
        found.append(index.search(query[None], 100)[1][0])
        times.append(time.perf_counter() - started)
    report = {
        "windows" if options.windows else "clips": count,
        "dimensions": options.width,
        "hours": options.hours,
        "size_mb": size / 1e6,
        "build_s": build_s,
        "cells": index.nlist,
        "share_of_cells_visited": CELLS_VISITED,
        "search_ms_median_one_core": 1000 * float(np.median(times)),
        "search_ms_95_percent": 1000 * float(np.quantile(times, 0.95)),
        "recall_of_the_nearest": float(np.mean([e[0] in f for e, f in zip(exact, found, strict=True)])),
        "recall_of_the_nearest_100": float(np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)])),
    }
    print(json.dumps(report, indent=1))
    if options.out:
        keep(options.out, report)


if __name__ == "__main__":
    main()
