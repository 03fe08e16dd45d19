"""Seams of inpainting and extension, and whether new parts fit: each case made by each method, then measured.

case, method -> edited waveform -> quantiles of the changes at its seams, features of the places, distances of parts
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.editing import edits, keep
from benchmarks.editing.fitting import described, distances
from benchmarks.editing.judge import Heard, Place
from benchmarks.editing.pieces import Piece
from musicldm.analysis.seams import seam_quantiles

NEIGHBOURHOOD_S = 5.0  # of the kept part to either side that a new part is compared with
ELSEWHERE = 2  # other beats of the piece that count as true places, for each seam
CLEAR_S = 0.5  # of true places from where seams are in the edited version, and
ENDS_S = 3.0  # from the ends, as seams are: judges must not tell places by how near an end is


def measured(case: edits.Case, method: str, pipelines: edits.Pipelines, source: str, folder: Path) -> dict:
    """All numbers of a case made by ``method`` of the ``source`` version of its piece, original or coded.

    ``true`` as a method is the piece itself, unedited.
    """
    name = f"{case.kind}/{source}/{case.piece.name}-{method}"
    waveform = getattr(case.piece, source)

    def measure() -> dict:
        if method == "true":
            edited, told = unedited(case, waveform)
        else:
            edited, told = keep.sound(
                folder / f"{name}-sound.flac",
                case.piece.rate,
                lambda: edits.make(case, method, pipelines, waveform),
            )
        return told | numbers_of(case, edited, told)

    return keep.numbers(folder / f"{name}.json", measure)


def unedited(case: edits.Case, waveform: np.ndarray) -> tuple[np.ndarray, dict]:
    """The same stretch of the piece as an edited version has, with the places where its seams would be."""
    rate, (start, stop) = case.piece.rate, case.region
    if case.kind == "inpaint":
        return waveform, {"seams_s": [start, stop], "new_s": [[start, stop]], "shift_s": 0.0}
    part = waveform[round(start * rate) - round(edits.BEFORE_S * rate) : round((stop + edits.AFTER_S) * rate)]
    seams = [edits.BEFORE_S, edits.BEFORE_S + stop - start]
    new = [[0.0, seams[0]], [seams[1], len(part) / rate]]
    return part, {"seams_s": seams, "new_s": new, "shift_s": edits.BEFORE_S}


def numbers_of(case: edits.Case, edited: np.ndarray, told: dict) -> dict:
    """Quantiles, features and descriptions of an edited version."""
    rate, seams = case.piece.rate, told["seams_s"]
    first_s = 0.0 if case.kind == "inpaint" else case.region.start_s
    beats = case.piece.beats_s - first_s + told["shift_s"]
    kept = [beat for beat in beats if not any(a - 0.1 < beat < b + 0.1 for a, b in told["new_s"])]
    heard = Heard(edited.astype(np.float32), rate)
    start, stop = (round(t * rate) for t in max(told["new_s"], key=lambda pair: pair[1] - pair[0]))
    reach = round(NEIGHBOURHOOD_S * rate)
    beside = [edited[max(0, start - reach) : start], edited[stop : stop + reach]]
    if case.kind == "extend":
        beside = beside[:1]
    return {
        "quantiles": seam_quantiles(edited.astype(np.float32), rate, seams, kept).tolist(),
        "features": [heard.features(t).tolist() for t in seams],
        "elsewhere": [heard.features(t).tolist() for t in elsewhere(case, kept, seams, len(edited) / rate)],
        "new": described(edited[start:stop].astype(np.float32), rate),
        "kept": described(np.concatenate(beside).astype(np.float32), rate) | {"bpm": case.piece.bpm},
    }


def elsewhere(case: edits.Case, beats: list[float], seams: list[float], seconds: float) -> list[float]:
    """Kept beats, away from the seams and the ends, drawn by the piece's name."""
    inner = [beat for beat in beats if ENDS_S <= beat <= seconds - ENDS_S]
    clear = [beat for beat in inner if min(abs(beat - seam) for seam in seams) > CLEAR_S]
    rng = np.random.default_rng(case.seed)
    return sorted(rng.permutation(clear)[: ELSEWHERE * len(seams)].tolist())


def places(cases: Iterable[edits.Case], found: list[dict], true: list[dict], columns: np.ndarray) -> list[Place]:
    """Joined places of ``found``, and true ones: the same places of the unedited pieces, and other beats.

    ``columns (D,)`` says which features count.
    """
    result = []
    for case, one, other in zip(cases, found, true, strict=True):
        rows = [(True, f) for f in one["features"]]
        rows += [(False, f) for f in (*other["features"], *other["elsewhere"])]
        result += [Place(case.piece.piece_id, joined, np.array(f)[columns]) for joined, f in rows]
    return result


def fits(cases: list[edits.Case], found: list[dict], true: list[dict]) -> dict[str, list[dict]]:
    """Distances between kept and new parts; between two true parts of one piece; and between parts of two pieces."""
    told: dict[str, list[dict]] = {"new": [], "same_piece": [], "other_piece": []}
    for i, (one, own) in enumerate(zip(found, true, strict=True)):
        other = next(
            true[(i + k) % len(true)]
            for k in range(1, len(true))
            if cases[(i + k) % len(true)].piece.piece_id != cases[i].piece.piece_id
        )
        told["new"].append(distances(one["new"], one["kept"]))
        told["same_piece"].append(distances(own["new"], own["kept"]))
        told["other_piece"].append(distances(other["new"], own["kept"]))
    return told


def cases_of(pieces: list[Piece], kind: str, count: int) -> list[edits.Case]:
    return [edits.case_of(piece, kind) for piece in pieces[:count]]
