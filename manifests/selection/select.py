"""Select rows of a manifest: status, where, similar, top, diverse, stratify, balance, sample, split, in this
order.

Each step is a query over the rows that the step before has left, in a temporary table of the columns that
the steps read. Whether a row is drawn depends only on (seed, sample_id) and on which rows are left, its split
on (seed, content_hash) and those of its duplicates (`families`): not on row order, the number of parts or the
machine. A sample of N + 1 rows contains the sample of N rows with the same seed, with --stratify and
--balance too. A row stays in its split when the set grows, unless a near-duplicate of it comes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from uhr.base.console import warn
from uhr.base.errors import UserError, unknown
from uhr.manifests.manifest import Manifest
from uhr.manifests.selection import families
from uhr.manifests.selection.embeddings import Vectors, covering, nearest
from uhr.manifests.selection.options import Similar, SliceOptions, Top, check_shares
from uhr.manifests.sql import SqlCondition, finite_column, quoted

_NAMED = 5
"""The largest number of strata that a message names."""


@dataclass(frozen=True)
class Selection:
    """The selected rows, in the order of the manifest.

    positions: their places among all rows, int64 [rows]. ids: their sample ids, string [rows]. splits: the
    split of each, string [rows]; None without `split`.
    """

    positions: np.ndarray
    ids: pa.ChunkedArray
    splits: pa.Array | None


def select(parent: Manifest, options: SliceOptions, query: np.ndarray | None = None) -> Selection:
    """Select the rows of `parent` that `options` describes.

    query: the unit vector of `options.similar`, float64 [D]; by default that of the sample `similar.to`.

    Raises UserError if a column is unknown or cannot be used by its step, if the condition is invalid, if no
    rows or fewer than `sample` are left, or if a split is empty.
    """
    condition = None
    if options.where is not None:
        condition = SqlCondition.parse(options.where, "--where")
        condition.check(parent.schema)
    _check(parent.schema, options, parent.name)
    try:
        with parent.connect() as connection:
            steps = _Steps(connection, parent, options)
            steps.first(condition)
            if options.similar is not None:
                steps.similar(options.similar, query)
            for top in options.top or ():
                steps.top(top)
            if options.diverse is not None:
                steps.diverse(options.diverse)
            if options.stratify or options.balance is not None:
                steps.draw_by_groups()
            elif options.sample is not None:
                steps.draw()
            return steps.selection()
    except duckdb.Error as error:
        if condition is None:
            raise
        raise condition.error_from(error) from None


def _check(schema: pa.Schema, options: SliceOptions, where: str) -> None:
    """Raise UserError unless the options fit together and name columns that their steps can use."""
    for name, option in (*options.ranked().items(), *options.grouped().items()):
        if name not in schema.names:
            raise unknown("column", name, schema.names, f"{option}: {where}")
    for name, option in options.ranked().items():
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise UserError(f"{option}: {name} is {kind}, not a number", "name a column of numbers")
    for name, option in options.grouped().items():
        kind = schema.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise UserError(f"{option}: {name} is {kind}, which makes no groups", "name another column")
        if pa.types.is_floating(kind):
            raise UserError(
                f"{option}: {name} is {kind}: nearly every row would be a group of its own",
                "name a column of texts, integers or booleans",
            )
    if options.stratify and options.sample is None and options.balance is None:
        raise UserError("--stratify without --sample", "say how many rows to draw, with --sample N")
    if options.sample is not None and options.sample < 1:
        raise UserError(f"--sample {options.sample}", "draw at least 1")
    if options.split is not None:
        check_shares(options.split, f"--split {options.split}")


class _Steps:
    """The tables `live0`, `live1`, ...: after each step those rows that are left.

    Columns: `position` among all rows, `sample_id`, `family` (the name by which a row is split), and `c0`,
    `c1`, ... which the steps read; `_column` says which of them is which.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, parent: Manifest, options: SliceOptions
    ) -> None:
        self._connection = connection
        self._parent = parent
        self._options = options
        self._column = {
            name: f"c{number}" for number, name in enumerate(options.ranked() | options.grouped())
        }
        self._numbers = itertools.count()
        self._table = ""
        self._left = 0
        self._so_far = f"{parent.info.counts['rows']} rows"

    def first(self, condition: SqlCondition | None) -> None:
        """Number the rows, and keep those of the status for which the condition is true."""
        options, counts = self._options, self._parent.info.counts
        by_status = "true" if options.status == "any" else f"status = '{options.status}'"
        by_where = condition.sql_for(self._connection) if condition else "true"
        read = [f"{self._value(name)} AS {column}" for name, column in self._column.items()]
        self._next(
            f"""SELECT * EXCLUDE (by_status, by_where) FROM (
                SELECT row_number() OVER () - 1 AS position, {by_status} AS by_status,
                       {by_where} AS by_where, {", ".join(["sample_id", *self._family(), *read])}
                FROM samples) WHERE by_status AND by_where"""
        )
        of_status = counts["rows"] if options.status == "any" else counts[options.status]
        self._so_far += f", {of_status} of status {options.status}"
        if options.where is not None and condition is not None:
            nulls = self._count(f"samples WHERE {by_status} AND ({by_where}) IS NULL")
            self._so_far += f", {self._left} of them where {options.where}"
            self._so_far += f" ({nulls} are null there)" if nulls else ""
            if nulls and self._left:
                warn(
                    f"--where {options.where} is null on {nulls:,} of {of_status:,} rows, and they are left "
                    f"out"
                )
        if self._left == 0:
            raise UserError(
                f"nothing is left of {self._parent.name} ({self._so_far})",
                "loosen --where, or see --status any",
            )

    def _value(self, name: str) -> str:
        floating = pa.types.is_floating(self._parent.schema.field(name).type)
        return finite_column(name) if floating else quoted(name)

    def _family(self) -> list[str]:
        """Return SQL for the name by which a row is split: no image is in two splits."""
        if not self._options.split:
            return []
        return [f"{families.make(self._connection, self._parent.schema.names, 'families')} AS family"]

    def top(self, top: Top) -> None:
        """Keep the rows with the highest values; rows without a value are left out, ties go by sample_id."""
        column, groups = self._column[top.by], [self._column[name] for name in top.per]
        self._leave_out_null(f"--top {top.by}", column)
        size = f"{top.rows:d}" if top.rows is not None else f"greatest(1, floor(n * {top.share!r} + 0.5))"
        over = f"PARTITION BY {', '.join(groups)}" if groups else ""
        self._next(
            f"""SELECT * EXCLUDE (place, n) FROM (
                SELECT *, count(*) OVER ({over}) AS n,
                       row_number() OVER ({over} ORDER BY {column} DESC, sample_id) AS place
                FROM {self._table}) WHERE place <= {size}"""
        )
        self._so_far += f", {self._left} of them at the top of {top.by}"

    def similar(self, similar: Similar, query: np.ndarray | None) -> None:
        """Keep the rows whose embeddings are nearest to the query."""
        vectors = Vectors(self._parent, self._options.embedding)
        to = vectors.of_sample(similar.to) if query is None else query
        self._keep(nearest(vectors, *self._places(), to, similar.rows))
        self._so_far += f", {self._left} of them nearest to {similar.to}"

    def diverse(self, count: int) -> None:
        """Keep rows that cover all by their embeddings."""
        vectors = Vectors(self._parent, self._options.embedding)
        self._keep(covering(vectors, *self._places(), count))
        self._so_far += f", {self._left} of them that cover the others"

    def _places(self) -> tuple[np.ndarray, pa.ChunkedArray]:
        rows = self._connection.sql(
            f"SELECT position, sample_id FROM {self._table} ORDER BY position"
        ).to_arrow_table()
        return rows["position"].to_numpy(), rows["sample_id"]

    def _keep(self, positions: np.ndarray) -> None:
        self._connection.register("chosen", pa.table({"position": positions}))
        self._next(f"SELECT * FROM {self._table} SEMI JOIN chosen USING (position)")
        self._connection.unregister("chosen")

    def draw(self) -> None:
        """Keep `sample` rows, those with the smallest keys."""
        self._check_sample(self._left)
        self._next(
            f"""SELECT * FROM {self._table}
                ORDER BY {self._key("sample", "sample_id")}, sample_id LIMIT {self._options.sample:d}"""
        )

    def draw_by_groups(self) -> None:
        """Draw so that `balance` has equally many rows of each value, and `stratify` keeps its shares.

        Rows of a stratum of n rows, in the order of their keys, get the places (r - 1/2) / n, r = 1..n; the
        smallest places give each stratum its share to within one row (Webster's method, which never takes a
        row back when the sample grows). With `balance`, each value's rows are ordered in this way, and drawn
        in turn.
        """
        options = self._options
        balance = None if options.balance is None else self._column[options.balance]
        if balance is not None:
            self._leave_out_null(f"--balance {options.balance}", balance)
        by = f"PARTITION BY {balance}" if balance else ""
        strata = [self._column[name] for name in options.stratify or ()]
        stratum = ", ".join([*([balance] if balance else []), *strata])
        key = f"{self._key('sample', 'sample_id')}, sample_id"
        place = (
            f"(row_number() OVER (PARTITION BY {stratum} ORDER BY {key}) - 0.5)::DOUBLE"
            f" / count(*) OVER (PARTITION BY {stratum})"
        )
        keyed = f"SELECT *, {place} AS place FROM {self._table}"
        turns = f"SELECT *, row_number() OVER ({by} ORDER BY place, {key}) AS turn FROM ({keyed})"
        before = self._table
        if options.sample is None:
            least = f"(SELECT min(n) FROM (SELECT count(*) AS n FROM {before} GROUP BY {balance}))"
            self._next(f"SELECT * EXCLUDE (place, turn) FROM ({turns}) WHERE turn <= {least}")
        else:
            self._check_sample(self._left)
            limit = f"ORDER BY turn, {key} LIMIT {options.sample:d}"
            self._next(f"SELECT * EXCLUDE (place, turn) FROM ({turns}) {limit}")
        self._warn_of_small_groups(before, balance, strata)

    def _leave_out_null(self, option: str, column: str) -> None:
        """Keep the rows that have a value. Raises UserError, which names the option, if none has one."""
        missing = self._count(f"{self._table} WHERE {column} IS NULL")
        if missing == self._left:
            raise UserError(
                f"{option}: none of the {self._left} rows that are left has a value ({self._so_far})",
                "name a column that the pipeline has written",
            )
        if missing:
            warn(f"{option} is null on {missing:,} of {self._left:,} rows, and they are left out")
            self._next(f"SELECT * FROM {self._table} WHERE {column} IS NOT NULL")

    def _warn_of_small_groups(self, before: str, balance: str | None, strata: Sequence[str]) -> None:
        """Say which strata have no row in the sample, and which values of `balance` have too few rows."""
        options = self._options
        if strata:
            lost = self._rows(
                f"""SELECT {", ".join(strata)} FROM {before} GROUP BY ALL
                    EXCEPT SELECT {", ".join(strata)} FROM {self._table} GROUP BY ALL ORDER BY ALL"""
            )
            if lost:
                what = "stratum is" if len(lost) == 1 else "strata are"
                warn(
                    f"--stratify {','.join(options.stratify or ())}: {len(lost):,} {what} too small for "
                    f"a row in this sample: {_listed(lost)}"
                )
        if balance is not None and options.sample is not None:
            sizes = self._rows(f"SELECT {balance}, count(*) FROM {self._table} GROUP BY ALL ORDER BY ALL")
            most = max(count for _, count in sizes)
            few = [(value, count) for value, count in sizes if count < most - 1]
            if few:
                what = "value has" if len(few) == 1 else "values have"
                warn(
                    f"--balance {options.balance}: {len(few):,} {what} too few rows, and the others "
                    f"have more: {_listed(few)}"
                )

    def selection(self) -> Selection:
        """Return the rows that are left."""
        split = self._options.split
        draw = f", {self._key('split', 'family')} AS draw" if split else ""
        found = self._connection.sql(
            f"SELECT position, sample_id{draw} FROM {self._table} ORDER BY position"
        ).to_arrow_table()
        splits = None if split is None else _splits(split, _unit(found["draw"]))
        return Selection(found["position"].to_numpy(), found["sample_id"], splits)

    def _key(self, use: str, column: str) -> str:
        """Return SQL for a row's random key: the first 64 bits of SHA-256("seed:use:id")."""
        return f"('0x' || sha256('{self._options.seed:d}:{use}:' || {column})[1:16])::UBIGINT"

    def _check_sample(self, left: int) -> None:
        if self._options.sample is not None and self._options.sample > left:
            raise UserError(
                f"--sample {self._options.sample} is more than the {left} rows that are left"
                f" ({self._so_far})",
                "draw fewer",
            )

    def _next(self, query: str) -> None:
        """Make the next table; the one before stays until the connection is closed."""
        self._table = f"live{next(self._numbers)}"
        self._connection.execute(f"CREATE TEMP TABLE {self._table} AS {query}")
        self._left = self._count(self._table)

    def _count(self, rows: str) -> int:
        return int(self._rows(f"SELECT count(*) FROM {rows}")[0][0])

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()


def _listed(rows: Sequence[Sequence[Any]]) -> str:
    texts = [" ".join("null" if value is None else str(value) for value in row) for row in rows[:_NAMED]]
    return ", ".join(texts) + (", ..." if len(rows) > _NAMED else "")


def _unit(keys: pa.ChunkedArray) -> np.ndarray:
    """Turn 64-bit keys into numbers in [0, 1), from their first 53 bits, which a float represents exactly."""
    return (keys.to_numpy().astype(np.uint64) >> np.uint64(11)).astype(np.float64) / 2.0**53


def _splits(split: Mapping[str, float], draws: np.ndarray) -> pa.Array:
    """Return the split of every row, string [rows]: the share of [0, 1) that its draw falls into."""
    names = list(split)
    bounds = np.cumsum([split[name] for name in names])[:-1]
    codes = np.searchsorted(bounds, draws, side="right")
    sizes = np.bincount(codes, minlength=len(names))
    for name, size in zip(names, sizes, strict=True):
        if size == 0:
            fix = "give it a larger share, another --seed, or a larger slice"
            raise UserError(f"--split {name}={split[name]:g} of {len(draws)} rows came out empty", fix)
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names)).cast(pa.string())
