"""Numbers of all cases to the numbers of a report, each with its interval over cases.

rows of each column, one a case  ->  means, and what share of the ceiling the context reaches
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.editing.summary import mean_of, rounded, share_of
from musicldm.evaluate.intervals import bootstrap

Rows = dict[str, list[dict]]  # by column: true, round_trip, text, context


def of_columns(rows: Rows) -> dict:
    """Means of each measure in each column; a case that lacks a measure is left out of it."""
    measures = dict.fromkeys(name for column in rows.values() for row in column for name in row)
    return {
        measure: {
            column: _mean([row[measure] for row in of_column if measure in row]) for column, of_column in rows.items()
        }
        for measure in measures
    }


def _mean(values: Sequence[float]) -> dict | None:
    if len(values) < 2:
        return None
    return share_of([value == 1 for value in values]) if set(values) <= {0.0, 1.0} else mean_of(values)


def of_ceiling(rows: Rows, measure: str, ceiling: str = "round_trip", column: str = "context") -> dict:
    """Mean of ``measure`` in ``column`` as a share of that in ``ceiling``, over the same cases."""
    made, highest = (np.array([row[measure] for row in rows[name]], float) for name in (column, ceiling))
    return rounded(bootstrap(lambda a, b: float(a.mean() / max(b.mean(), 1e-9)), made, highest))


def against(value: dict, aim: float) -> dict:
    """A ``value`` with its interval beside what was aimed at."""
    return value | {"aim": aim, "reached": bool(value["value"] >= aim)}
