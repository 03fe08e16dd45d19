"""Whether beats are found and mixtures keep time, on rendered scores whose beats are known.

    python -m recipes.mixup_experiment.beats [--pairs 100] [--recordings FOLDER]

`beats` tracks the scores and compares with what was written; `recordings` compares with madmom's own processors on
annotated recordings; `alignment` pairs the scores, cuts and stretches them as for a mixture, and tracks both halves
anew: how far apart are their beats, in either mode? Results: recipes/mixup_experiment/results/beats.json.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import mir_eval
import numpy as np
from tqdm import tqdm

from augment.beats import Beats, track_beats
from augment.mixup import stretch
from augment.pairing import Alignment, Pairing, Recording
from benchmarks.results import keep
from musicldm.audio import read_audio
from musicldm.scores.synthesis import find_soundfont
from recipes.mixup_experiment.scores import Piece, Rendered, render_piece

RATE, CLIP_S, SECONDS = 16_000, 10.24, 14.0
BASES = (64, 76, 92, 100, 112, 124, 138, 152, 184, 61.5, 69, 196)  # BPM; four pieces each, up to 2 % beside


def pieces() -> list[Piece]:
    """Forty-eight at a steady tempo, 3/4 and 4/4, straight and swung, with and without pick-up; four with a step."""
    rng = np.random.default_rng(0)
    made = []
    for (k, base), copy in itertools.product(enumerate(BASES), range(4)):
        metre = 3 if k in (1, 4, 7, 10) else 4
        made.append(
            Piece(
                bpm=round(float(base * rng.uniform(0.98, 1.02)), 2),
                beats_per_bar=metre,
                pickup=int(rng.integers(metre)) if copy % 2 else 0,
                swing=0.67 if copy == 3 else 0.5,
                seed=len(made),
            )
        )
    return made + [Piece(bpm, seed=100 + i, second_bpm=after) for i, (bpm, after) in enumerate(STEPS)]


STEPS = ((90, 120), (120, 96), (140, 160), (100, 110))


def track_all(waveforms: list[np.ndarray], workers: int) -> list[Beats]:
    """The beats of each waveform (L,)."""
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(tqdm(pool.map(track_beats, waveforms, itertools.repeat(RATE)), total=len(waveforms), desc="track"))


def measure_beats(soundfont: Path, folder: Path, workers: int) -> tuple[list[Rendered], list[Beats], dict]:
    """Render and track all pieces; F-measures at mir_eval's 70 ms, without its 5 s trim: all beats count."""
    rows = []
    rendered = [render_piece(piece, SECONDS, soundfont, folder, RATE) for piece in tqdm(pieces(), desc="render")]
    tracked = track_all([piece.waveform for piece in rendered], workers)
    for piece, written, found in zip(pieces(), rendered, tracked, strict=True):
        beats, downbeats = f_measures(written.beats_s, written.downbeats_s, found)
        rows.append(
            {
                **piece._asdict(),
                "beat_f": beats,
                "downbeat_f": downbeats,
                "found_bpm": round(found.tempo_bpm, 2),
                "found_beats_per_bar": found.beats_per_bar,
                "confidence": round(found.confidence, 3),
            }
        )
    steady = [row for row in rows if row["second_bpm"] is None]
    steps = [row for row in rows if row["second_bpm"] is not None]
    summary = {}
    for name, group in (("steady", steady), ("tempo_steps", steps)):
        summary[name] = {"pieces": len(group)} | {
            f"{key}_{kind.__name__}": round(float(kind([row[key] for row in group])), 4)
            for key in ("beat_f", "downbeat_f")
            for kind in (np.mean, np.median, np.min)
        }
    return rendered, tracked, summary | {"each": rows}


def f_measures(beats_s: np.ndarray, downbeats_s: np.ndarray, found: Beats) -> tuple[float, float]:
    """F-measure of the beats and of the downbeats."""
    return tuple(
        round(float(mir_eval.beat.f_measure(expected, actual)), 4)
        for expected, actual in ((beats_s, found.times_s), (downbeats_s, found.downbeats_s))
    )


def measure_recordings(folder: Path) -> list[dict]:
    """F-measures on annotated recordings, of ours and of madmom's own processors on the same samples."""
    from augment.madmom_compat import madmom_compatibility, map_to_rows

    rows = []
    for path in tqdm(sorted(folder.glob("*.beats")), desc="recordings"):
        annotation = np.loadtxt(path)
        audio = next(p for p in folder.glob(f"{path.stem}.*") if p != path)
        waveform, rate = read_audio(audio, 44_100)
        found = track_beats(waveform, rate)
        with madmom_compatibility():
            from madmom.features.downbeats import DBNDownBeatTrackingProcessor, RNNDownBeatProcessor

            decoder = DBNDownBeatTrackingProcessor(beats_per_bar=[3, 4], fps=100)
            decoder.map = map_to_rows
            theirs = decoder(RNNDownBeatProcessor()(waveform))
        row = {"file": audio.name}
        downbeats = annotation[annotation[:, 1] == 1, 0]
        for name, times, firsts in (
            ("ours", found.times_s, found.downbeats_s),
            ("madmom", theirs[:, 0], theirs[theirs[:, 1] == 1, 0]),
        ):
            row[f"{name}_beat_f"] = round(float(mir_eval.beat.f_measure(annotation[:, 0], times)), 4)
            if len(downbeats):
                row[f"{name}_downbeat_f"] = round(float(mir_eval.beat.f_measure(downbeats, firsts)), 4)
        rows.append(row)
    return rows


def recording_of(index: int, rendered: Rendered, beats: Beats) -> Recording:
    """The tracked piece, as pairing sees it; every piece is a group of its own."""
    name = f"{index:03d}"
    seconds = len(rendered.waveform) / RATE
    return Recording(
        name, name, seconds, beats.times_s, beats.downbeats_s, beats.beats_per_bar, beats.tempo_bpm, beats.confidence
    )


def halves(a: Rendered, b: Rendered, fit: Alignment) -> tuple[np.ndarray, np.ndarray]:
    """Both aligned parts, as long as the shorter, at most a clip."""
    first = a.waveform[round(fit.a_start_s * RATE) :]
    second = stretch(b.waveform, RATE, fit.speed)[round(fit.b_start_s / fit.speed * RATE) :]
    n = min(len(first), len(second), round(CLIP_S * RATE))
    return first[:n], second[:n]


def differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Seconds between each beat of the slower half and the nearest of the other one."""
    sparse, dense = sorted((first, second), key=len)
    if not len(sparse):
        return np.empty(0)
    return np.abs(sparse[:, None] - dense[None]).min(axis=1)


class Pair(NamedTuple):
    """Two aligned recordings."""

    anchor: int
    partner: int
    fit: Alignment
    first: np.ndarray  # (L,)
    second: np.ndarray  # (L,)


def draw_pairs(rendered: list[Rendered], tracked: list[Beats], n_pairs: int, mode: str) -> list[Pair]:
    """Pairs of which at least half a clip remains; anchors are cut within their first bars, so that cuts recur."""
    recordings = [recording_of(i, *pair) for i, pair in enumerate(zip(rendered, tracked, strict=True))]
    pairing, rng, pairs = Pairing(recordings, CLIP_S, mode), np.random.default_rng(1), []
    for anchor in itertools.islice(itertools.cycle(range(len(recordings))), 20 * n_pairs):
        fits = pairing.draw(anchor, rng, within_s=(0.0, 2.0))
        if fits is None or fits[0] == anchor:
            continue
        partner, fit = fits
        first, second = halves(rendered[anchor], rendered[partner], fit)
        if len(first) >= CLIP_S * RATE / 2:
            pairs.append(Pair(anchor, partner, fit, first, second))
        if len(pairs) == n_pairs:
            break
    return pairs


def summary_of(pairs: list[Pair], found_s: list[np.ndarray]) -> dict:
    """How far apart the beats of the pairs are; ``found_s``: `differences` of each pair."""
    every = 1000 * np.concatenate(found_s)
    return {
        "pairs": len(pairs),
        "stretched": sum(pair.fit.speed != 1 for pair in pairs),
        "seconds_mean": round(float(np.mean([len(pair.first) for pair in pairs])) / RATE, 2),
        "beats": len(every),
        "median_ms": round(float(np.median(every)), 2),
        "percentile_95_ms": round(float(np.percentile(every, 95)), 2),
        "share_within_20_ms": round(float((every <= 20).mean()), 4),
    }


def written_differences(pair: Pair, rendered: list[Rendered]) -> np.ndarray:
    """`differences` of the beats that were written, moved as the waveforms were."""
    end = len(pair.first) / RATE
    a = rendered[pair.anchor].beats_s - pair.fit.a_start_s
    b = (rendered[pair.partner].beats_s - pair.fit.b_start_s) / pair.fit.speed
    return differences(*(times[(times > -0.02) & (times < end)] for times in (a, b)))


def measure_alignment(rendered: list[Rendered], tracked: list[Beats], n_pairs: int, mode: str, workers: int) -> dict:
    """Differences between the beats of both halves of ``n_pairs`` mixtures: as they were written, and tracked anew."""
    pairs = draw_pairs(rendered, tracked, n_pairs, mode)
    keys = [(p.anchor, p.fit.a_start_s, len(p.first)) for p in pairs]  # of first halves: the same cut, once
    parts = dict(zip(keys, (p.first for p in pairs), strict=True))
    anew = track_all([*parts.values(), *(p.second for p in pairs)], workers)
    firsts, seconds = dict(zip(parts, anew, strict=False)), anew[len(parts) :]
    found = [differences(firsts[k].times_s, b.times_s) for k, b in zip(keys, seconds, strict=True)]
    written = [written_differences(pair, rendered) for pair in pairs]
    return {"tracked": summary_of(pairs, found), "written": summary_of(pairs, written)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, help="folder of recordings with NAME.beats beside them")
    parser.add_argument("--soundfont", type=Path, default=None)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--paper-pairs", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("recipes/mixup_experiment/results/beats.json"))
    options = parser.parse_args()
    soundfont = options.soundfont or find_soundfont()
    with tempfile.TemporaryDirectory() as folder:
        rendered, tracked, beats = measure_beats(soundfont, Path(folder), options.workers)
    keep(options.out, {"soundfont": soundfont.name, "beats": beats})
    steady = [i for i, piece in enumerate(pieces()) if piece.second_bpm is None]
    chosen = [rendered[i] for i in steady], [tracked[i] for i in steady]
    for mode, n in {"synchronous": options.pairs, "paper": options.paper_pairs}.items():
        keep(options.out, {f"alignment_{mode}": measure_alignment(*chosen, n, mode, options.workers)})
    if options.recordings:
        keep(options.out, {"recordings": measure_recordings(options.recordings)})


if __name__ == "__main__":
    main()
