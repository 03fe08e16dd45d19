"""How large, fast and exact is an index of 1,000 hours? Synthetic unit vectors in the number and shape of CLAP's.

    python -m benchmarks.index --out benchmarks/results/index.json

The vectors lie in clusters of a normal mixture in a subspace, as embeddings of music do, plus noise in all dimensions.
Recall is the share of the exact nearest clips that the index also names.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.results import keep
from musicldm.novelty.index import CELLS_VISITED, make_faiss


def synthetic(count: int, width: int, rank: int, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors ``(count, width)``."""
    basis = rng.normal(size=(rank, width)).astype(np.float32)
    centres = rng.normal(size=(clusters, rank)).astype(np.float32)
    points = centres[rng.integers(clusters, size=count)]
    points += 0.5 * rng.normal(size=(count, rank)).astype(np.float32)
    vectors = points @ basis
    vectors += 0.1 * np.sqrt(rank) * rng.normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=360_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import faiss

    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    vectors = synthetic(options.clips + options.queries, options.width, 64, 2000, rng)
    vectors, queries = vectors[: options.clips], vectors[options.clips :]
    started = time.perf_counter()
    index = make_faiss(vectors)
    build_s = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clips.faiss"
        faiss.write_index(index, str(path))
        size = path.stat().st_size
        index = faiss.read_index(str(path))
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :100]
    found, times = [], []
    for query in queries:
        started = time.perf_counter()
        found.append(index.search(query[None], 100)[1][0])
        times.append(time.perf_counter() - started)
    report = {
        "clips": options.clips,
        "dimensions": options.width,
        "hours": options.clips * 10 / 3600,
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
