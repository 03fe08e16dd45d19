"""Playing along: does an added part go with the parts that are given, and is it the instrument that was asked for?

piece -> some of its parts (given) and the others (missing), with a text for these -> the model adds its own
added part, given parts -> agreement of tempo, chords and onsets; that of the true part, of another piece's
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.control import judges, scoring, summary
from benchmarks.control.following import Study
from benchmarks.control.pieces import SECONDS, Piece
from benchmarks.control.playing import Wanted, music
from benchmarks.control.text import heard_family
from benchmarks.editing.edits import seed_of
from benchmarks.editing.keep import numbers
from musicldm.audio import read_audio, write_audio
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
    """Parts of a piece, at the model's rate (L,)."""

    piece: Piece
    given: np.ndarray
    missing: np.ndarray
    text: str  # that asks for what is missing


def cases_of(study: Study) -> list[Case]:
    """The first pieces that have parts to be given, and others to be missed; their sound is kept."""
    folder, rate, cases = study.work / f"along-{study.rate}", study.rate, []
    for piece in tqdm(study.pieces, desc="parts to play along with"):
        if len(cases) == study.count:
            break
        told = numbers(folder / f"{piece.name}.json", lambda piece=piece: draw(piece, rate, folder))
        if told["text"] is not None:
            given, missing = (read_audio(folder / f"{piece.name}-{name}.flac", rate)[0] for name in PARTS)
            cases.append(Case(piece, given, missing, told["text"]))
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


def measured(study: Study, probe: FamilyProbe | None) -> dict:
    """Agreement of added parts with what is given, by column; family as asked where the text names one."""
    cases, rate = cases_of(study), study.rate
    back = study.player.round_trip(((f"{c.piece.name}-missing", c.missing) for c in cases), "along")
    true = [music(file, rate) for file in back]
    columns = {
        "true_partner": true,
        "random_partner": [true[(i + 1) % len(true)] for i in range(len(true))],
        "text": played(study, cases, context=False),
    }
    if study.player.takes_context:
        columns["context"] = played(study, cases, context=True)
    rows = {
        column: [
            numbers(
                study.player.folder / f"along-{column}" / f"{case.piece.name}.agreement.json",
                lambda case=case, part=part: agreement(case.given, part, rate),
            )
            for case, part in zip(cases, parts, strict=True)
        ]
        for column, parts in columns.items()
    }
    if probe is not None:
        for column, parts in columns.items():
            for row, case, part in zip(rows[column], cases, parts, strict=True):
                if (family := asked_family(case.text, probe.classes)) and column != "random_partner":
                    row["family_as_asked"] = float(heard_family(probe, part, rate) == family)
    told = {"cases": len(cases), "measures": summary.of_columns(rows)}
    if "context" in rows:
        told["nearer_to_the_true_partner"] = nearer(told["measures"])
    return told


def played(study: Study, cases: list[Case], context: bool) -> list[np.ndarray]:
    """What the model plays for the texts, along with what is given or not."""
    wanted = [
        Wanted(case.piece.name, case.text, {"along": torch.from_numpy(case.given)} if context else None)
        for case in cases
    ]
    files = study.player.play(wanted, "along-context" if context else "along-text", study.guidance)
    return [music(file, study.rate) for file in files]


def agreement(given: np.ndarray, part: np.ndarray, rate: int) -> dict[str, float]:
    """Of a part with the parts that are given: tempo, the share of time with the same chord, onset strength.

    The tempo agrees within 4 %, up to octaves; chords are those of Basic Pitch; onsets agree by the
    correlation of their strengths about the mean.
    """
    import librosa

    bpms = [judges.beats(one, rate)["bpm"] for one in (given, part)]
    ratio = bpms[1] / bpms[0] if min(bpms) else 0.0
    given_chords, part_chords = (judges.chords(one, rate)["basic_pitch"] for one in (given, part))
    strengths = [librosa.onset.onset_strength(y=one.astype(np.float32), sr=rate) for one in (given, part)]
    n = min(map(len, strengths))
    flat = min(float(np.std(one[:n])) for one in strengths) < 1e-6
    return {
        "tempo": float(min(abs(ratio * factor - 1) for factor in (0.5, 1, 2)) <= 0.04),
        "chords": scoring.same_chords(given_chords, part_chords),
        "onsets": 0.0 if flat else float(np.corrcoef(strengths[0][:n], strengths[1][:n])[0, 1]),
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
