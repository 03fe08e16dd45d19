"""Does CLAP find the recording that a caption describes, also by words that it has not seen together?

    python -m recipes.mini.retrieval --train data/train --held data/held --out recipes/mini/results/clap.json

Both are renderings of different pieces (``recipes.mini.data``). Captions of the held-out clips are searched among
all of their recordings: each clip's first caption, its first caption in which no two words are new to each other, and
its first in which some two are: both known from captions of the training set, but from none together. Words are runs
of letters, digits and sharps.
"""

from __future__ import annotations

import argparse
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import keep
from musicldm.data.clips import read_clip
from musicldm.data.collection import load_clips
from musicldm.models.clap import embed_audio, embed_text
from musicldm.train.common import model_folder
from musicldm.train.diffusion.cache import load_conditioner

WORD = re.compile(r"[a-z0-9#']+")
RATE, CLIP_S = 16_000, 10.24  # Hz and seconds, of the renderings


def words_of(text: str) -> tuple[str, ...]:
    """The different words of a caption, sorted."""
    return tuple(sorted(set(WORD.findall(text.lower()))))


def new_pairs(text: str, words: set[str], pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Two words of ``text`` that are each among ``words``, but not together among ``pairs``."""
    known = [word for word in words_of(text) if word in words]
    return [pair for pair in combinations(known, 2) if pair not in pairs]


def recall(text: np.ndarray, audio: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """How often ``audio[right[i]]`` is the nearest, or among the ten nearest, of ``audio (N, D)`` to ``text[i]``."""
    similarity = text @ audio.T
    above = (similarity > similarity[np.arange(len(right)), right][:, None]).sum(axis=1)
    n = len(audio)
    shares = {"at_1": float((above < 1).mean()), "at_10": float((above < 10).mean())}
    return {"captions": len(text), **shares, "chance_at_1": 1 / n, "chance_at_10": 10 / n}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini", help="a model, or the final folder of CLAP's training")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--held", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=1000, help="spread evenly over the held-out collection")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    clap, tokenizer, feature_extractor = load_conditioner(model_folder("--model", arguments.model))
    clap.eval()

    seen = [words_of(text) for clip in load_clips(arguments.train, CLIP_S) for text in clip.texts]
    words, pairs = {w for some in seen for w in some}, {pair for some in set(seen) for pair in combinations(some, 2)}
    clips = [clip for clip in load_clips(arguments.held, CLIP_S) if clip.texts]
    clips = [clips[i] for i in np.linspace(0, len(clips) - 1, min(len(clips), arguments.clips)).astype(int)]
    heard = []
    for clip in clips:
        waveform = torch.from_numpy(read_clip(clip, RATE, round(CLIP_S * RATE)))[None]
        heard.append(embed_audio(clap, feature_extractor, waveform, RATE))
    audio = torch.cat(heard).numpy()

    groups: dict[str, list[tuple[int, str]]] = {"first": [], "words_seen_together": [], "words_not_seen_together": []}
    for i, clip in enumerate(clips):
        groups["first"].append((i, clip.texts[0]))
        for name, new in (("words_seen_together", False), ("words_not_seen_together", True)):
            chosen = [text for text in clip.texts if bool(new_pairs(text, words, pairs)) == new]
            groups[name] += [(i, text) for text in chosen[:1]]
    results = {}
    for name, chosen in groups.items():
        if not chosen:
            print(f"{name}: none of the captions")
            continue
        texts = [text for _, text in chosen]
        batches = [texts[i : i + 64] for i in range(0, len(texts), 64)]
        read = torch.cat([embed_text(clap, tokenizer, some) for some in batches]).numpy()
        results[name] = recall(read, audio, np.array([i for i, _ in chosen]))
        print(name, results[name])
    if arguments.out:
        keep(arguments.out, {"retrieval": {"model": arguments.model, "recordings": len(audio), **results}})


if __name__ == "__main__":
    main()
