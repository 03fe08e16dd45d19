"""Numbers of all cases to the numbers of a report, each with its interval over cases or pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.editing.edits import Case
from benchmarks.editing.judge import REACHES, area, columns
from benchmarks.editing.seams import fits, places
from musicldm.evaluate.intervals import Estimate, bootstrap, share


def rounded(estimate: Estimate) -> dict:
    return {name: round(value, 4) for name, value in estimate._asdict().items()}


def median_of(values: Sequence[float]) -> dict:
    return rounded(bootstrap(np.median, np.array(values, np.float64)))


def mean_of(values: Sequence[float]) -> dict:
    return rounded(bootstrap(np.mean, np.array(values, np.float64)))


def share_of(hits: Sequence[bool]) -> dict:
    return rounded(share(np.array(hits)))


def by_piece(cases: Sequence[Case], values: Sequence[Sequence[float]], statistic: Callable = np.median) -> dict:
    """``statistic`` of all values, with an interval over pieces; ``values`` has some for each case."""
    names = sorted({case.piece.piece_id for case in cases})
    grouped = {name: [] for name in names}
    for case, some in zip(cases, values, strict=True):
        grouped[case.piece.piece_id] += list(some)

    def over(chosen: np.ndarray) -> float:
        return float(statistic([value for i in chosen for value in grouped[names[i]]]))

    return rounded(bootstrap(over, np.arange(len(names))))


def above(values: Sequence[float]) -> float:
    return float(np.mean(np.array(values) > 0.9))


def of_seams(cases: Sequence[Case], found: list[dict], true: list[dict], judged: bool = True) -> dict:
    """Quantiles of the changes at seams, and the classifier's area under the curve."""
    told = {
        "cases": len(cases),
        "seams": sum(len(one["seams_s"]) for one in found),
        "quantile_median": by_piece(cases, [one["quantiles"] for one in found]),
        "quantile_above_0.9": by_piece(cases, [one["quantiles"] for one in found], above),
    }
    if judged:
        told["auc"] = {
            f"within {reach:g} s": rounded(area(places(cases, found, true, columns(reach)))) for reach in REACHES
        }
    return told


def of_fits(cases: Sequence[Case], found: list[dict], true: list[dict]) -> dict:
    """Means of the distances between parts; whether the new part is nearer to how one piece is than to two."""
    told = {}
    for name, rows in fits(list(cases), found, true).items():
        tempo = [row["tempo_within_4_percent"] for row in rows if row["tempo_within_4_percent"] is not None]
        keys = [row["key_steps"] for row in rows if row["key_steps"] is not None]
        told[name] = {
            "tempo_within_4_percent": share_of(tempo) if len(tempo) > 1 else None,
            "key_within_one_fifth": share_of([steps <= 1 for steps in keys]) if len(keys) > 1 else None,
            "chroma_distance": median_of([row["chroma_distance"] for row in rows]),
            "loudness_distance_db": median_of([row["loudness_distance_db"] for row in rows]),
        }
    told["nearer_to_one_piece"] = {
        measure: nearer(told, measure)
        for measure in ("tempo_within_4_percent", "key_within_one_fifth", "chroma_distance", "loudness_distance_db")
    }
    return told


def nearer(told: dict, measure: str) -> bool | None:
    """Whether the new parts' value lies nearer to that of one piece than to that of two."""
    values = [told[name][measure] for name in ("new", "same_piece", "other_piece")]
    if None in values:
        return None
    new, same, other = (value["value"] for value in values)
    return bool(abs(new - same) < abs(new - other))


def of_loops(rows: list[dict]) -> dict:
    quantiles = [row["quantile"] for row in rows]
    return {
        "cases": len(rows),
        "quantile_median": median_of(quantiles),
        "quantile_above_0.9": share_of([value > 0.9 for value in quantiles]),
    }


def of_bars(rows: list[dict]) -> dict:
    made = [row for row in rows if row["made"]]
    errors = [row["phase_error_ms"] for row in made if row["phase_error_ms"] is not None]
    told = {"cases": len(rows), "made": share_of([row["made"] for row in rows]), "with_beats": len(errors)}
    if len(made) > 1:
        told |= {"quantile_median": median_of([row["quantile"] for row in made])}
    if len(errors) > 1:
        told |= {
            "phase_error_median_ms": median_of(errors),
            "phase_error_up_to_20_ms": share_of([error <= 20 for error in errors]),
        }
    return told


def of_tempos(rows: list[dict]) -> dict:
    told = {"cases": len(rows), "made": share_of([row["made"] for row in rows])}
    told |= {f"within_2_percent_by_{name}": share_of([row[name] for row in rows]) for name in ("madmom", "librosa")}
    made = [row for row in rows if row["made"]]
    if len(made) > 1:
        told["processor_s"] = median_of([row["processor_s"] for row in made])
        if "tried" in made[0]:
            told["candidates_tried"] = median_of([row["tried"] for row in made])
            told["stretch_percent"] = median_of([100 * abs(row["tempo"]["stretched"] - 1) for row in made])
    return told


def of_amounts(rows: list[dict]) -> dict:
    """Medians by amount, over cases."""
    measures = ("log_mel_distance", "chroma_distance", "loudness_distance_db", "clap_to_source", "clap_to_prompt")
    told = {
        amount: {measure: median_of([row[amount][measure] for row in rows]) for measure in measures}
        for amount in rows[0]
    }
    climbs = [np.diff([row[amount]["log_mel_distance"] for amount in row]) for row in rows]
    return {"cases": len(rows), "farther_with_each_amount": share_of([(c > -1e-6).all() for c in climbs])} | told


def of_long(rows: list[dict]) -> dict:
    right = [hit for row in rows for hit in row["right_prompt"]]
    told = {
        "pieces": len(rows),
        "sections": len(right),
        "quantile_median": median_of([value for row in rows for value in row["quantiles"]]),
        "right_prompt_nearest": share_of(right),
        "processor_s_a_second": float(np.mean([row["processor_s"] / row["seconds"] for row in rows])),
        "memory_mb_a_second": float(np.mean([row["bytes"] / 2**20 / row["seconds"] for row in rows])),
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in told.items()}
