"""The check of a recording against an index: nearest clips and window, best matching passage, and a verdict.

waveform (L,) -> clips -> embeddings -> nearest 2000 -> alignment -> copy | close | new
              -> windows of 2 s -> embeddings -> nearest          -> close | new
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from musicldm.analysis.waveforms import SILENCE
from musicldm.audio import write_whole
from musicldm.audio.figures import new_figure, png_bytes
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.novelty.alignment import FRAMES_PER_S, WINDOWS_S, Match, pitch_frames
from musicldm.novelty.background import PassageTest, passage_test
from musicldm.novelty.index import SECOND_CHECK, Neighbour, NoveltyIndex
from musicldm.novelty.windows import WINDOW_S, embed_windows, query_windows


class Verdict(NamedTuple):
    """Result of a check."""

    verdict: str  # copy: a passage matches as in at most 1 % of other music; close: the clip as a whole does; new
    similarity: float  # to the nearest clip, cosine
    nearest: list[tuple[Neighbour, float]]  # each with its time in the query, in seconds
    match: Match  # the best passage; its candidate is a clip number
    window: tuple[Neighbour, float] | None  # nearest window of 2 s, as in ``nearest``; None without windows
    test: PassageTest  # the test of the passage's score


def check(waveform: np.ndarray, sample_rate: int, index: NoveltyIndex, embedder: ClapEmbedder, count: int = 5):
    """`Verdict` on ``waveform (L,)``; long recordings are checked clip by clip, half a clip apart.

    Raises:
        ValueError: if the recording is silent or shorter than 2 s, or the index was made with another CLAP.
    """
    index.check_embedder(embedder.name)
    waveform = np.asarray(waveform, np.float32)
    if np.abs(waveform).max(initial=0) < SILENCE:
        raise ValueError("the recording is silent; give one with sound")
    if len(waveform) < WINDOWS_S[0] * sample_rate:
        raise ValueError(
            f"{len(waveform) / sample_rate:.2f} s are too short to compare; give {WINDOWS_S[0]:g} s or more"
        )
    length = round(embedder.clip_s * sample_rate)
    last = max(0, len(waveform) - length)
    starts = sorted({*range(0, last + 1, max(1, length // 2)), last})
    best: dict[int, tuple[Neighbour, float]] = {}
    match = None
    for start in starts:
        clip = waveform[start : start + length]
        if np.abs(clip).max() < SILENCE:
            continue
        similarities, clips = index.search(embedder(torch.from_numpy(clip)[None], sample_rate), SECOND_CHECK)
        for similarity, number in zip(similarities[0], clips[0], strict=True):
            if number >= 0 and (number not in best or best[number][0].similarity < similarity):
                best[int(number)] = index.neighbour(int(number), float(similarity)), start / sample_rate
        found = index.align(pitch_frames(clip, sample_rate), clips[0])
        if match is None or found.score > match.score:
            match = found._replace(query_start_s=found.query_start_s + start / sample_rate)
    nearest = sorted(best.values(), key=lambda item: -item[0].similarity)[:count]
    similarity = nearest[0][0].similarity
    window = None if index.windows is None else nearest_window(waveform, sample_rate, index, embedder)
    near = -1.0 if window is None else window[0].similarity
    test = passage_test(index, len(waveform) / sample_rate)
    verdict = judge(similarity, match.score, near, index.about["base_rate"], test.threshold)
    return Verdict(verdict, similarity, nearest, match, window, test)


def nearest_window(
    waveform: np.ndarray, sample_rate: int, index: NoveltyIndex, embedder: ClapEmbedder
) -> tuple[Neighbour, float] | None:
    """The window of the index nearest to a window of ``waveform (L,)``, and the time of the latter; None in silence."""
    starts_s, windows = query_windows(waveform, sample_rate, embedder)
    if not windows:
        return None
    rate = embedder.feature_extractor.sampling_rate
    similarities, numbers = index.search_windows(embed_windows(windows, rate, embedder))
    best = int(similarities[:, 0].argmax())
    return index.window(int(numbers[best, 0]), float(similarities[best, 0])), starts_s[best]


def judge(
    similarity: float, score: float, window_similarity: float, base_rate: dict, threshold: float | None = None
) -> str:
    """The verdict copy, close or new, by the thresholds in ``base_rate``.

    Only a passage can make it a copy: similar CLAP embeddings may just mean the same instruments. The passage's score
    must exceed ``threshold``, that of a `PassageTest`, by default that of the base rate.
    """
    if score > (base_rate["score_99"] if threshold is None else threshold):
        return "copy"
    near = similarity > base_rate["similarity_99"] or score > base_rate["score_95"]
    return "close" if near or window_similarity > base_rate.get("window_similarity_99", 1.0) else "new"


def record(path: str | Path, found: Verdict, index: NoveltyIndex) -> dict:
    """A verdict as JSON."""
    match, about = found.match, index.neighbour(found.match.candidate, 0.0)
    window = None
    if found.window is not None:
        near, query_start_s = found.window
        window = {"recording": near.recording["file"], "start_s": near.start_s, "query_start_s": query_start_s}
        window |= {"duration_s": WINDOW_S, "similarity": near.similarity, "title": near.recording.get("title")}
        window |= {"threshold": index.window_threshold}
    return {
        "file": str(path),
        "verdict": found.verdict,
        "similarity": found.similarity,
        "nearest": [
            {
                "recording": neighbour.recording["file"],
                "start_s": neighbour.start_s,
                "query_start_s": start_s,
                "similarity": neighbour.similarity,
                **{key: value for key, value in neighbour.recording.items() if key != "file"},
            }
            for neighbour, start_s in found.nearest
        ],
        "passage": {"recording": about.recording["file"], **match._asdict(), "title": about.recording.get("title")}
        | {"threshold": found.test.threshold},
        "judgement": found.test.record(match.score),
        "window": window,
        "base_rate": {
            name: index.about["base_rate"].get(name)
            for name in (
                "similarity_99",
                "similarity_basis",
                "similarity_false_alarm_interval",
                "score_99",
                "window_similarity_99",
                "window_similarity_basis",
                "window_similarity_false_alarm_interval",
            )
        },
    }


def save_match_figure(path: str | Path, waveform: np.ndarray, sample_rate: int, found: Verdict, index: NoveltyIndex):
    """Write a PNG of both spectrograms in semitone bands, with the best matching passage framed in both."""
    from matplotlib.patches import Rectangle

    match = found.match
    source = index.neighbour(match.candidate, 0.0)
    figure = new_figure(10, 6.4)
    name = source.recording.get("title") or source.recording["file"]
    panels = (
        ("checked", pitch_frames(waveform, sample_rate), 0.0, match.query_start_s, match.duration_s / match.tempo),
        (f"training set: {name}", index.clip_frames(match.candidate), source.start_s, match.start_s, match.duration_s),
    )
    for axes, (title, frames, start_s, from_s, for_s) in zip(figure.subplots(2, 1), panels, strict=True):
        end_s = start_s + len(frames) / FRAMES_PER_S
        axes.imshow(frames.T, origin="lower", aspect="auto", cmap="magma", extent=(start_s, end_s, 36, 96))
        axes.add_patch(Rectangle((from_s, 36.5), for_s, 59, fill=False, edgecolor="#35d07f", linewidth=2.5))
        axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=11)
        axes.set_ylabel("MIDI pitch")
        axes.set_xlabel("time (s)")
    moved = f"{match.semitones:+d} semitones, tempo x {match.tempo:g}"
    figure.suptitle(f"{found.verdict}: passage score {match.score:.2f} (threshold {found.test.threshold:.2f}), {moved}")
    write_whole(path, png_bytes(figure))
