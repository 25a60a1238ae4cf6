"""Views: the rows of a filter in an order, as positions, and how often each value occurs among them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from uhr.base.config import Config, Text
from uhr.base.errors import UserError, unknown
from uhr.manifests.browse.filters import Filter, has_texts, has_values
from uhr.manifests.browse.reviewed import NAMES, POSITION, ReviewedRows
from uhr.manifests.browse.rows import Cache
from uhr.manifests.sql import finite_column, literal, quoted
from uhr.manifests.stats import FEW_VALUES, numeric_columns

POSITION_BYTES = 256 << 20
"""Memory for the positions of views: 32 million rows."""

KEPT_COUNTS = 64
"""Filters of which the counts of values are kept."""

MOST_VALUES = 12
"""The largest number of values of a column that are listed; the others are counted together."""

LONGEST = 60
"""The largest number of characters of a value that is listed."""

FIRST_FACETS = ("status", "reason", "review", "review_tags")
"""Columns that are offered before all others: those of reviews where there are any."""


class Order(Config):
    """The order of rows: by a column, or by uri where `by` is None."""

    by: Text | None = None
    descending: bool = True


@dataclass(frozen=True)
class Value:
    """A value of a column (None where it is missing), and the number of rows that have it."""

    value: str | bool | None
    rows: int


@dataclass(frozen=True)
class Facet:
    """The most frequent values of a column, and the number of rows that have another one."""

    column: str
    values: list[Value]
    others: int


class Views:
    """Computes views of the rows of a manifest, each with one query, and keeps those that were used last."""

    def __init__(self, rows: ReviewedRows) -> None:
        self._source, self._manifest = rows, rows.manifest
        self._kept: Cache[np.ndarray] = Cache(POSITION_BYTES, lambda positions: positions.nbytes)
        self._counted: Cache[list[Facet]] = Cache(KEPT_COUNTS, lambda facets: 1)
        self._lock = threading.Lock()

    def positions(self, filter_: Filter, order: Order, version: int | None = None) -> np.ndarray:
        """Return the positions of the rows of a filter in an order, int64 [rows].

        Rows without a value come last; ties are in the order of the manifest. version: that of the reviews
        when the filter was chosen, None for now. As long as the view is kept, it has the same rows: reviews
        that are made meanwhile do not move them to other pages. Raises UserError if the condition is invalid,
        or the column has no order.
        """
        self._check(order)
        condition = filter_.condition(self._source.schema)
        named = {order.by} if condition is None else {order.by, *condition.columns}
        version = self._source.version if version is None else version
        key = (filter_.model_dump_json(), order.model_dump_json(), version if named & NAMES else 0)
        found = self._kept.get(key)
        if found is None:
            with self._lock:  # the same page asks only once
                found = self._kept.get(key)
                if found is None:
                    found = self._kept.put(key, self._query(filter_, order))
        return found

    def _check(self, order: Order) -> None:
        if order.by is None:
            return
        schema = self._source.schema
        if order.by not in schema.names:
            raise unknown("column", order.by, schema.names)
        if order.by not in self.sortable:
            raise UserError(f"{order.by} is {schema.field(order.by).type}", "sort by a number or a text")

    @cached_property
    def sortable(self) -> list[str]:
        """The columns by which rows can be sorted: numbers, then texts."""
        schema = self._source.schema
        return numeric_columns(schema) + [field.name for field in schema if pa.types.is_string(field.type)]

    def _query(self, filter_: Filter, order: Order) -> np.ndarray:
        rows = self._manifest.info.counts["rows"]
        if order.by is None and filter_.status == "any" and filter_.condition(self._source.schema) is None:
            return np.arange(rows, dtype=np.int64)
        value = "NULL"
        if order.by is not None:
            number = order.by in numeric_columns(self._manifest.schema)
            value = finite_column(order.by) if number else quoted(order.by)
        direction = "DESC" if order.descending else "ASC"
        by = (
            f"ORDER BY value {direction} NULLS LAST, position"
            if order.by is not None
            else "ORDER BY position"
        )
        columns = f"{quoted(POSITION)} AS position, {value} AS value"
        with filtered(self._source, filter_, columns) as (connection, relation):
            found = connection.sql(f"SELECT position FROM {relation} {by}").to_arrow_table()
        return found["position"].to_numpy()

    @property
    def facets_of(self) -> list[str]:
        """The columns of which values are listed: those of reviews, if there are any, and those with few
        values in the first rows of the manifest.
        """
        schema = self._source.schema
        hidden = frozenset() if self._source.has_reviews else NAMES
        first = [name for name in FIRST_FACETS if name in schema.names and name not in hidden]
        return first + [name for name in self._grouping if name not in (*FIRST_FACETS, *NAMES)]

    @cached_property
    def _grouping(self) -> list[str]:
        schema = self._manifest.schema
        groups = self._manifest.row_groups()
        names = [field.name for field in schema if has_values(field.type) and not has_texts(field.type)]
        found: list[str] = []
        if groups and names:
            table = self._manifest.row_group(groups[0], names)
            found = [name for name in names if _makes_groups(table[name])]
        return found

    def facets(self, filter_: Filter) -> list[Facet]:
        """Count the values of each column of `facets_of` among the rows of a filter.

        A column of which values are chosen is counted without that choice, so that others can be chosen too.
        """
        key = (filter_.model_dump_json(), self._source.version)
        return self._counted.get(key) or self._counted.put(key, self._facets(filter_))

    def _facets(self, filter_: Filter) -> list[Facet]:
        names = self.facets_of
        lists = [name for name in names if has_texts(self._source.schema.field(name).type)]
        alone = [name for name in names if filter_.values.get(name) or name in lists]
        counted = self._counts(filter_, [name for name in names if name not in alone])
        for name in alone:
            count = self._elements if name in lists else self._counts
            counted |= count(filter_.without(name), [name])
        return [self._facet(name, counted[name], filter_) for name in names]

    def _elements(self, filter_: Filter, names: Sequence[str]) -> dict[str, dict[Any, int]]:
        """Count the rows that have each element of a list, and those without any."""
        (name,) = names
        value = f"CASE WHEN len({quoted(name)}) > 0 THEN {quoted(name)} ELSE [NULL] END AS list"
        with filtered(self._source, filter_, value) as (connection, relation):
            query = (
                f"SELECT value, count(*) FROM (SELECT unnest(list) AS value FROM {relation}) GROUP BY value"
            )
            return {name: dict(connection.sql(query).fetchall())}

    def _counts(self, filter_: Filter, names: Sequence[str]) -> dict[str, dict[Any, int]]:
        if not names:
            return {}
        columns = ", ".join(f"{quoted(name)} AS v{number}" for number, name in enumerate(names))
        places = [f"v{number}" for number in range(len(names))]
        sets = ", ".join(f"({place})" for place in places)
        found: dict[str, dict[Any, int]] = {name: {} for name in names}
        with filtered(self._source, filter_, columns) as (connection, relation):
            query = f"""SELECT GROUPING({", ".join(places)}), {", ".join(places)}, count(*) FROM {relation}
                        GROUP BY GROUPING SETS ({sets})"""
            for mask, *values, count in connection.sql(query).fetchall():
                # the first column is the highest bit; the one that is grouped by has a zero
                number = next(n for n in range(len(names)) if not mask >> (len(names) - 1 - n) & 1)
                found[names[number]][values[number]] = count
        return found

    def _facet(self, name: str, counts: dict[Any, int], filter_: Filter) -> Facet:
        chosen = filter_.values.get(name, ())
        ranked = sorted(counts.items(), key=lambda one: (one[0] not in chosen, -one[1], str(one[0])))
        listed = ranked[: max(MOST_VALUES, len(chosen))]
        missing = [Value(value, 0) for value in chosen if value not in counts]
        values = sorted((Value(*one) for one in listed), key=lambda one: -one.rows)
        return Facet(name, values + missing, sum(count for _, count in ranked[len(listed) :]))


@contextlib.contextmanager
def filtered(
    rows: ReviewedRows, filter_: Filter, columns: str
) -> Generator[tuple[duckdb.DuckDBPyConnection, str]]:
    """Yield a connection, and SQL for the relation of some columns of the rows of a filter. Raises UserError
    if the filter is invalid.
    """
    condition = filter_.condition(rows.schema)
    status = "true" if filter_.status == "any" else f"status = {literal(filter_.status)}"
    try:
        with rows.connect() as connection:
            where = condition.sql_for(connection) if condition is not None else "true"
            inside = f"SELECT {columns}, {status} AND {where} AS chosen FROM samples"
            yield connection, f"(SELECT * FROM ({inside}) WHERE chosen)"
    except duckdb.Error as error:
        if condition is None:
            raise
        raise condition.error_from(error) from None


def _makes_groups(column: pa.ChunkedArray) -> bool:
    """Whether a column has few values, short ones, that several rows share: no ids, hashes or captions, and
    no names of many groups of two or three rows each, such as near-duplicates.
    """
    values = column.unique().drop_null().to_pylist()
    filled = len(column) - column.null_count
    several = len(values) + (column.null_count > 0) > 1
    most = filled // 4 if len(values) > MOST_VALUES else filled // 2
    few = 0 < len(values) <= min(FEW_VALUES, most)
    return several and few and max(len(str(value)) for value in values) <= LONGEST
