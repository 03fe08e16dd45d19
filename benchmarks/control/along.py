"""Playing along: does an added part go with the parts that are given, and is it the instrument that was asked for?

piece -> some of its parts (given) and the others (missing), with a text for these -> the model adds its own
added part, given parts -> agreement of tempo, chords and onsets; that of the true part, of another piece's
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.control import scoring, summary
from benchmarks.control.following import Study
from benchmarks.control.hearing import hear
from benchmarks.control.pieces import SECONDS, Piece
from benchmarks.control.playing import Wanted, music
from benchmarks.control.text import heard_family
from benchmarks.editing.edits import seed_of
from benchmarks.editing.keep import numbers
from musicldm.audio import write_audio
from musicldm.evaluate.families import asked_family
from musicldm.evaluate.probe import FamilyProbe
from musicldm.scores.contexts import ClipSource, ContextPlan, draw_context

PLAN = ContextPlan(("along",), alone=True)
LEAST_LEVEL = 1e-3  # root mean square of a part that is heard
TRIES = 4
PARTS = ("given", "missing")
AGREEMENTS = ("tempo", "chords", "onsets")


@dataclass(frozen=True)
class Case:
    """Parts of a piece, as files at the model's rate."""

    piece: Piece
    given: Path
    missing: Path
    text: str  # that asks for what is missing


def cases_of(study: Study) -> list[Case]:
    """The first pieces that have parts to be given, and others to be missed; their sound is kept."""
    folder, rate, cases = study.work / f"along-{study.rate}", study.rate, []
    for piece in tqdm(study.pieces, desc="parts to play along with"):
        if len(cases) == study.count:
            break
        told = numbers(folder / f"{piece.name}.json", lambda piece=piece: draw(piece, rate, folder))
        if told["text"] is not None:
            cases.append(Case(piece, *(folder / f"{piece.name}-{name}.flac" for name in PARTS), told["text"]))
    return cases


def draw(piece: Piece, rate: int, folder: Path) -> dict:
    """Write the parts of a piece that are given and that are missing; a text for these, None where there are none.

    Of `TRIES` draws the first is taken whose missing part is of one family that the text names, else the first.
    """
    clip = ClipSource(piece.midi, SECONDS, lambda: piece.waveform(rate), 0.0, piece.row["render"])
    usable = []
    for i in range(TRIES):
        drawn = draw_context(PLAN, clip, np.random.default_rng(seed_of("along", piece.name, str(i))), rate)
        if drawn.target is None:  # of one part alone
            break
        if min(level(drawn.audio), level(drawn.target)) >= LEAST_LEVEL:
            usable.append(drawn)
        if usable and asked_family(usable[-1].text):
            break
    if not usable:
        return {"text": None}
    chosen = usable[-1] if asked_family(usable[-1].text) else usable[0]
    for name, sound in zip(PARTS, (chosen.audio, chosen.target), strict=True):
        write_audio(folder / f"{piece.name}-{name}.flac", sound, rate)
    return {"text": chosen.text}


def level(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.square(waveform, dtype=np.float64).mean()))


def measured(study: Study, probe: FamilyProbe) -> dict:
    """Agreement of added parts with what is given, by column; family as asked where the text names one."""
    cases, rate = cases_of(study), study.rate
    missing = ((f"{case.piece.name}-missing", music(case.missing, rate)) for case in cases)
    true = study.player.round_trip(missing, "along")
    columns = {"true_partner": true, "random_partner": true[1:] + true[:1], "text": played(study, cases, context=False)}
    if study.player.takes_context:
        columns["context"] = played(study, cases, context=True)
    given = heard([case.given for case in cases], rate)
    rows = {
        column: [agreement(*pair) for pair in zip(given, heard(files, rate), strict=True)]
        for column, files in columns.items()
    }
    families = [asked_family(case.text, probe.classes) for case in cases]
    for column, files in columns.items():
        for row, family, file in zip(rows[column], families, files, strict=True):
            if family == "drums":
                del row["chords"]
            if family and column != "random_partner":
                row["family_as_asked"] = float(heard_family(probe, music(file, rate), rate) == family)
    told = {"cases": len(cases), "measures": summary.of_columns(rows)}
    if "context" in rows:
        told["nearer_to_the_true_partner"] = nearer(told["measures"])
    return told


def played(study: Study, cases: list[Case], context: bool) -> list[Path]:
    """What the model plays for the texts, along with what is given or not."""
    wanted = [
        Wanted(
            case.piece.name,
            case.text,
            {"along": torch.from_numpy(music(case.given, study.rate))} if context else None,
        )
        for case in cases
    ]
    return study.player.play(wanted, "along-context" if context else "along-text", study.guidance)


class Heard(NamedTuple):
    """What is compared of a part."""

    bpm: float
    chords: dict
    onsets: np.ndarray  # their strength, (T,)


def heard(files: Sequence[Path], rate: int) -> list[Heard]:
    """Of each of ``files``."""
    import librosa

    beats, chords = hear("beats", files, rate), hear("chords", files, rate)
    onsets = [librosa.onset.onset_strength(y=music(file, rate), sr=rate) for file in files]
    return [
        Heard(one["bpm"], names["basic_pitch"], strength)
        for one, names, strength in zip(beats, chords, onsets, strict=True)
    ]


def agreement(given: Heard, part: Heard) -> dict[str, float]:
    """Whether tempos agree within 4 %, up to octaves; share of time with the same chord; correlation of the onsets."""
    ratio = part.bpm / given.bpm if given.bpm else 0.0
    n = min(len(given.onsets), len(part.onsets))
    flat = min(float(np.std(one.onsets[:n])) for one in (given, part)) < 1e-6
    return {
        "tempo": float(min(abs(ratio * factor - 1) for factor in (0.5, 1, 2)) <= 0.04),
        "chords": scoring.same_chords(given.chords, part.chords),
        "onsets": 0.0 if flat else float(np.corrcoef(given.onsets[:n], part.onsets[:n])[0, 1]),
    }


def nearer(measures: dict) -> dict[str, bool]:
    """Whether what the model adds lies nearer to the true partner than to a random one."""
    told = {}
    for name in AGREEMENTS:
        made, true, other = (
            measures[name][column]["value"] for column in ("context", "true_partner", "random_partner")
        )
        told[name] = bool(abs(made - true) < abs(made - other))
    return told
