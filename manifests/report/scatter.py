"""The scatter plot of any two scores: a sample of rows, and the thresholds that are drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from uhr.manifests.report.thresholds import Threshold
from uhr.manifests.schema import STATUSES
from uhr.manifests.sql import finite_column

POINTS = 2000
"""The largest number of rows in a plot."""

MOST_SCORES = 24
"""The largest number of columns to choose from."""


@dataclass(frozen=True)
class Scatter:
    """Rows as JSON: each a list of the index of its status in STATUSES, and its value of each of `names`.

    `cuts` is JSON too: lists of an index in `names`, a sign and a number. `shown` of `rows` rows are there.
    """

    names: list[str]
    points: str
    cuts: str
    shown: int
    rows: int


def score_names(ruled: Sequence[str], varying: Sequence[str]) -> list[str]:
    """Return the columns to choose from: those that rules compare first, then others that vary."""
    first = [name for name in dict.fromkeys(ruled) if name in varying]
    return [*first, *(name for name in varying if name not in first)][:MOST_SCORES]


def scatter(
    connection: duckdb.DuckDBPyConnection, names: Sequence[str], thresholds: Sequence[Threshold]
) -> Scatter | None:
    """Return a sample of the rows of `samples` that have two of these values; None if there are none.

    The sample is that of the smallest ids, which are hashes.
    """
    if len(names) < 2:
        return None
    values = ", ".join(f"{finite_column(name)} AS v{number}" for number, name in enumerate(names))
    filled = " + ".join(f"(v{number} IS NOT NULL)::INTEGER" for number in range(len(names)))
    chosen = f"SELECT * FROM (SELECT sample_id, status, {values} FROM samples) WHERE {filled} >= 2"
    ((count,),) = connection.sql(f"SELECT count(*) FROM ({chosen})").fetchall()
    if not count:
        return None
    rows = connection.sql(f"{chosen} ORDER BY sample_id LIMIT {POINTS}").fetchall()
    points = [[STATUSES.index(status), *map(_short, row)] for _, status, *row in rows]
    cuts = [[names.index(cut.column), cut.sign, cut.value] for cut in thresholds if cut.column in names]
    return Scatter(list(names), _json(points), _json(cuts), len(rows), count)


def scores_of(row: Sequence[float | None]) -> str:
    """Return the values of one image as JSON, in the order of the names."""
    return _json([_short(value) for value in row])


def _short(value: float | None) -> float | None:
    """Return four significant digits: more cannot be seen, and take space in the page."""
    return None if value is None else float(f"{value:.4g}")


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
