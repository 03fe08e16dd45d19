"""The music that the benchmark asks for: held-out scores, rendered once, with what is true of each clip.

score -> `musicldm render --contexts` -> clip.flac, clip.mid and a row -> Piece
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.editing.pieces import held_out
from musicldm.audio import read_audio
from musicldm.scores.reading import Score, read_score
from musicldm.scores.rendering import RenderConfig, render_scores
from recipes.mini.data import SOUNDFONTS

SECONDS = 10.24
POOL = 400  # scores that are rendered at most: more than there are, since not each has drums, or chords, or a tempo
RENDERING = RenderConfig(soundfonts=SOUNDFONTS, clip_s=SECONDS, min_clip_s=SECONDS, max_clips=1, seed=4, contexts=True)


@dataclass(frozen=True)
class Piece:
    """A clip of a score that no model learned from."""

    row: dict  # of the folder's metadata.jsonl
    folder: Path

    @property
    def name(self) -> str:
        return Path(self.row["file_name"]).stem

    @property
    def prompt(self) -> str:
        return self.row["text"]

    @property
    def midi(self) -> Path:
        return self.folder / self.row["midi"]

    @cached_property
    def score(self) -> Score:
        """All that sounds, in the seconds of the clip."""
        return read_score(self.midi)

    def waveform(self, rate: int) -> np.ndarray:
        """Mono, (L,)."""
        return read_audio(self.folder / self.row["file_name"], rate)[0]


def prepare(index: Path, scores: Path, folder: Path) -> list[Piece]:
    """A clip of each held-out score that is long enough, all sources in turn; the audio folder is rendered once."""
    wanted = held_out(index, scores, POOL)
    render_scores(wanted, folder, RENDERING, index=index)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    by_score = {row["score"]: row for row in rows}
    names = [path.relative_to(scores).as_posix() for path in wanted]
    return [Piece(by_score[name], folder) for name in names if name in by_score]
