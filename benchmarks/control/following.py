"""Whether music has what was asked for beside the text: a tempo, chords, a melody, all notes, drums.

pieces -> true renderings | the same after VAE and vocoder | text alone | with the context -> rows of scores
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.control import asking, scoring, summary, truth
from benchmarks.control.hearing import JUDGE_OF, hear, hear_true
from benchmarks.control.pieces import SECONDS, Piece
from benchmarks.control.playing import Player, Wanted
from benchmarks.control.summary import Rows
from musicldm.scores.hearing import check_audible
from vocoder import mel_config

TRUTHS = {"chords": truth.chords, "melody": truth.melody, "notes": truth.notes, "drums": truth.drums}
MAIN = {  # measure that is aimed at, and the share of its value after the round trip
    "chords": ("recall", 0.8),
    "melody": ("chroma_accuracy", 0.8),
    "notes": ("f1_50_ms", 0.7),
    "drums": ("f1", 0.7),
}
TEMPO_AIMS = {"within_2_percent": 0.9, "beat_f": 0.85}


@dataclass(frozen=True)
class Study:
    """What all kinds are measured with."""

    pieces: list[Piece]
    player: Player
    work: Path
    count: int  # of the cases of a kind
    guidance: float  # of the context

    @property
    def rate(self) -> int:
        return self.player.rate

    def true(self, judge: str, pieces: Sequence[Piece]) -> list[dict]:
        return hear_true(judge, pieces, self.work / f"true-{self.rate}", self.rate)

    def round_trip(self, judge: str, pieces: Sequence[Piece]) -> list[dict]:
        music = ((piece.name, piece.waveform(self.rate)) for piece in pieces)
        return hear(judge, self.player.round_trip(music, "pieces"), self.rate)

    def text_alone(self, pieces: Sequence[Piece]) -> list[Path]:
        return self.player.play([Wanted(piece.name, piece.prompt) for piece in pieces], "text")


def followed(kind: str, study: Study) -> dict:
    """How well ``kind`` (chords, melody, notes, drums) is followed, in the columns that the model allows."""
    pieces, refused, files = (pieces_of(kind, study), {}, [])
    if study.player.takes_context:
        pieces, refused, files = with_context(kind, study)
    judge, truths = JUDGE_OF[kind], [TRUTHS[kind](piece) for piece in pieces]
    heard = {
        "true": study.true(judge, pieces),
        "round_trip": study.round_trip(judge, pieces),
        "text": hear(judge, study.text_alone(pieces), study.rate),
    }
    if files:
        heard["context"] = hear(judge, files, study.rate)
    rows = {column: scored(kind, some, truths) for column, some in heard.items()}
    measure, aim = MAIN[kind]
    told = {"cases": len(pieces), "refused": refused, "measures": summary.of_columns(rows)}
    if files:
        told["of_round_trip"] = summary.against(summary.of_ceiling(rows, measure), aim) | {"measure": measure}
    return told


def with_context(kind: str, study: Study) -> tuple[list[Piece], dict[str, str], list[Path]]:
    """Pieces, what was made of their texts and sketches of ``kind``, and between them why pieces are left out, by name.

    A piece is left out where its sketch cannot be asked of the model: too high, too dense, no pitch.
    """
    mel = mel_config(study.player.pipeline.vocoder)
    pieces, wanted, refused = [], [], {}
    for piece in tqdm(pieces_of(kind, study), desc=f"sketches of {kind}"):
        try:
            sketch = asking.ASKED[kind](piece)
            check_audible(sketch, mel)
        except ValueError as error:
            refused[piece.name] = str(error)
            continue
        pieces.append(piece)
        wanted.append(Wanted(piece.name, piece.prompt, {kind: sketch}))
    return pieces, refused, study.player.play(wanted, kind, study.guidance)


def pieces_of(kind: str, study: Study) -> list[Piece]:
    """The first pieces that have ``kind``."""
    found = (piece for piece in study.pieces if TRUTHS[kind](piece) is not None)
    return list(islice(found, study.count))


def scored(kind: str, heard: Sequence[dict], truths: Sequence) -> list[dict]:
    """Scores of each piece of music by what is true of it."""
    score = {"chords": scoring.chords, "melody": scoring.melody, "notes": scoring.notes, "drums": scoring.drums}[kind]
    return [score(one, true[1] if kind == "melody" else true) for one, true in zip(heard, truths, strict=True)]


def tempo(study: Study) -> dict:
    """How often music has the tempo that a click and words ask for, beside the judge on music of known tempo."""
    bpms = [asking.tempo_of(i) for i in range(study.count)]
    wanted = [Wanted(f"{i:03d}-{bpm}", asking.tempo_prompt(i, bpm)) for i, bpm in enumerate(bpms)]
    asked = [(bpm, np.arange(0, SECONDS, 60 / bpm)) for bpm in bpms]
    timed = [(piece, times) for piece in study.pieces if (times := truth.beats(piece)) is not None][: study.count]
    known, pieces = [(piece.row["tempo_bpm"], times) for piece, times in timed], [piece for piece, _ in timed]
    rows: Rows = {
        "true": [scoring.tempo(*row) for row in joined(study.true("beats", pieces), known)],
        "round_trip": [scoring.tempo(*row) for row in joined(study.round_trip("beats", pieces), known)],
        "text": [scoring.tempo(*row) for row in joined(_heard_beats(wanted, "tempo-text", study), asked)],
    }
    if study.player.takes_context:
        clicked = [
            Wanted(one.name, one.prompt, {"click": asking.click(bpm)}) for one, bpm in zip(wanted, bpms, strict=True)
        ]
        rows["context"] = [scoring.tempo(*row) for row in joined(_heard_beats(clicked, "tempo", study), asked)]
    told = {"cases": len(asked), "pieces_of_known_tempo": len(known), "measures": summary.of_columns(rows)}
    if "context" in rows:
        told["aims"] = {
            name: summary.against(told["measures"][name]["context"], aim) for name, aim in TEMPO_AIMS.items()
        }
    return told


def _heard_beats(wanted: list[Wanted], folder: str, study: Study) -> list[dict]:
    return hear("beats", study.player.play(wanted, folder, study.guidance), study.rate)


def joined(heard: Sequence[dict], asked: Sequence[tuple]) -> list[tuple]:
    return [(one, *rest) for one, rest in zip(heard, asked, strict=True)]
