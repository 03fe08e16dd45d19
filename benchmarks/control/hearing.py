"""What a judge hears in each piece of music, kept beside it.

name of the judge, file or piece -> dictionary, in FILE.JUDGE.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.control import judges
from benchmarks.control.pieces import Piece
from benchmarks.control.playing import music
from benchmarks.editing.keep import numbers

Judge = Callable[[np.ndarray, int], dict]
JUDGES: dict[str, Judge] = {
    "beats": judges.beats,
    "chords": judges.chords,
    "notes": judges.notes,
    "drums": judges.drums,
}
JUDGE_OF = {"tempo": "beats", "chords": "chords", "melody": "notes", "notes": "notes", "drums": "drums"}


def hear(judge: str, files: Sequence[Path], rate: int) -> list[dict]:
    """What ``judge`` hears in each of ``files``."""
    return [
        numbers(file.with_suffix(f".{judge}.json"), lambda file=file: JUDGES[judge](music(file, rate), rate))
        for file in tqdm(files, desc=f"hear {judge} in {files[0].parent.name if files else 'nothing'}")
    ]


def hear_true(judge: str, pieces: Sequence[Piece], folder: Path, rate: int) -> list[dict]:
    """The same in the true renderings at ``rate``, kept in ``folder``."""
    return [
        numbers(folder / f"{piece.name}.{judge}.json", lambda piece=piece: JUDGES[judge](piece.waveform(rate), rate))
        for piece in tqdm(pieces, desc=f"hear {judge} in true renderings")
    ]
