"""Ranges of numeric columns: how the values of the rows of a filter are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uhr.base.errors import UserError, unknown
from uhr.manifests.browse.filters import Filter
from uhr.manifests.browse.reviewed import ReviewedRows
from uhr.manifests.browse.rows import Cache
from uhr.manifests.browse.views import KEPT_COUNTS, filtered
from uhr.manifests.sql import SqlCondition, finite_column
from uhr.manifests.stats import numeric_columns

BINS = 30
"""The number of intervals of a histogram."""

SHOWN = 3
"""The largest number of columns whose range is shown before the user chooses any."""

_USUAL = ("megapixels", "aspect_ratio", "entropy")


@dataclass(frozen=True)
class Distribution:
    """The values of a column among the rows of a filter.

    low, high: the range of the finite values of all rows of the manifest; None if there is none. start, end:
    their 1st and 99th percentile, so that a few outliers do not take all of the width. counts: the number of
    rows in each of `BINS` intervals of equal width between these two; the first and the last interval also
    have the values beyond. missing: rows without a value.
    """

    column: str
    low: float | None
    high: float | None
    start: float | None
    end: float | None
    counts: list[int]
    missing: int


class Ranges:
    """Computes distributions, and keeps those that were used last. For several threads."""

    def __init__(self, rows: ReviewedRows) -> None:
        self._rows = rows
        self.columns = numeric_columns(rows.manifest.schema)
        self._limits: dict[str, tuple[float | None, ...]] = {}
        self._kept: Cache[Distribution] = Cache(KEPT_COUNTS, lambda found: 1)

    @property
    def suggested(self) -> list[str]:
        """The columns that are shown first: those of the manifest's rules, then usual ones."""
        ruled = [
            name
            for rule in self._rows.manifest.info.rules
            if rule.state == "evaluated"
            for name in sorted(SqlCondition.parse(rule.where, "rule").columns)
        ]
        found = [name for name in (*ruled, *_USUAL) if name in self.columns]
        return list(dict.fromkeys(found))[:SHOWN]

    def distributions(self, filter_: Filter, columns: Sequence[str]) -> list[Distribution]:
        """Return the distribution of each column among the rows of a filter, without its own range.

        Raises UserError if a column is not numeric, or the filter is invalid.
        """
        for name in columns:
            if name not in self._rows.manifest.schema.names:
                raise unknown("column", name, self.columns)
            if name not in self.columns:
                kind = self._rows.manifest.schema.field(name).type
                raise UserError(f"{name} is {kind}, not a number", "choose one of its values instead")
        self._measure([name for name in columns if name not in self._limits])
        return [self._distribution(filter_.without_range(name), name) for name in columns]

    def _measure(self, names: Sequence[str]) -> None:
        if not names:
            return
        with self._rows.manifest.connect() as connection:
            for name in names:
                ((low, high, cuts),) = connection.sql(
                    "SELECT min(value), max(value), quantile_cont(value, [0.01, 0.99]) "
                    f"FROM (SELECT {finite_column(name)} AS value FROM samples)"
                ).fetchall()
                start, end = cuts or (None, None)
                self._limits[name] = (low, high, *((low, high) if start == end else (start, end)))

    def _distribution(self, filter_: Filter, name: str) -> Distribution:
        key = (filter_.model_dump_json(), name, self._rows.version)
        return self._kept.get(key) or self._kept.put(key, self._counted(filter_, name))

    def _counted(self, filter_: Filter, name: str) -> Distribution:
        low, high, start, end = self._limits[name]
        width = ((end or 0.0) - (start or 0.0)) / BINS or 1.0
        # as texts: a number with a point would be a DECIMAL, and its conversion may round otherwise
        place = f"floor((value - '{start or 0.0!r}'::DOUBLE) / '{width!r}'::DOUBLE)"
        # `least` and `greatest` would turn null into an interval
        place = f"CASE WHEN value IS NOT NULL THEN greatest(least({place}, {BINS - 1}), 0)::INTEGER END"
        with filtered(self._rows, filter_, f"{finite_column(name)} AS value") as (connection, relation):
            found = connection.sql(f"SELECT {place} AS bin, count(*) FROM {relation} GROUP BY bin").fetchall()
        counts = dict(found)
        bins = [counts.get(n, 0) for n in range(BINS)]
        return Distribution(name, low, high, start, end, bins, counts.get(None, 0))
