"""Statistics of a manifest: verdicts, the funnel, quantiles, coverage, frequent values, aspect ratios."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import KEPT
from uhr.manifests.sql import finite_column, quoted

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
FEW_VALUES = 32
"""The values of a text column are listed if it has at most this many, and several rows share them."""

TOP = 10


@dataclass(frozen=True)
class Numeric:
    """A numeric column over all rows: share with a finite value in [0, 1], range, quantiles p1 to p99."""

    name: str
    unit: str
    coverage: float
    least: float | None
    greatest: float | None
    quantiles: dict[str, float | None]


@dataclass(frozen=True)
class Text:
    """A text column with few values: share of rows with a value [0, 1], and the counts of frequent values."""

    name: str
    coverage: float
    values: int
    top: dict[str, int]


@dataclass(frozen=True)
class Stats:
    """`counts` and `rules` are those of `manifest.json`; `aspects` has rows and kept rows per bucket."""

    id: str
    counts: dict[str, Any]
    rules: list[dict[str, Any]]
    numeric: list[Numeric] = field(default_factory=list)
    text: list[Text] = field(default_factory=list)
    aspects: list[dict[str, Any]] = field(default_factory=list)


def compute(manifest: Manifest) -> Stats:
    """Compute the statistics of all rows, kept or not."""
    info = manifest.info
    rules = [
        {**rule.model_dump(), "label": rule.label, "left": rule.seen - rule.rejected} for rule in info.rules
    ]
    with manifest.connect() as connection:
        return Stats(
            id=info.id,
            counts=info.counts,
            rules=rules,
            numeric=_numeric(connection, manifest),
            text=_text(connection, manifest),
            aspects=_aspects(connection, manifest),
        )


def licences(manifest: Manifest) -> list[dict[str, Any]]:
    """Count the rows of each licence, as their sources state it, most frequent first; None is without one."""
    with manifest.connect() as connection:
        query = "SELECT license, count(*) AS rows FROM samples GROUP BY license ORDER BY rows DESC, license"
        return connection.sql(query).to_arrow_table().to_pylist()


def numeric_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the numeric columns."""
    kinds = (pa.types.is_integer, pa.types.is_floating)
    return [f.name for f in schema if any(kind(f.type) for kind in kinds)]


def _numeric(connection: duckdb.DuckDBPyConnection, manifest: Manifest) -> list[Numeric]:
    units = {column.name: column.unit for column in manifest.columns}
    return [
        numeric_of(connection, name, units[name], finite_column(name))
        for name in numeric_columns(manifest.schema)
    ]


def numeric_of(connection: duckdb.DuckDBPyConnection, name: str, unit: str, value: str) -> Numeric:
    """Return the statistics of a number over all rows; `value` is SQL over the columns of one row."""
    cut = f"quantile_cont(value, {list(QUANTILES)})"
    inside = f"SELECT {value} AS value FROM samples"
    query = f"SELECT count(*), count(value), min(value), max(value), {cut} FROM ({inside})"
    rows, count, least, greatest, values = _one(connection, query)
    quantiles = {
        f"p{q * 100:g}": one for q, one in zip(QUANTILES, values or [None] * len(QUANTILES), strict=True)
    }
    return Numeric(name, unit, count / max(rows, 1), least, greatest, quantiles)


def _text(connection: duckdb.DuckDBPyConnection, manifest: Manifest) -> list[Text]:
    kinds = (pa.types.is_string, pa.types.is_boolean)
    names = [f.name for f in manifest.schema if any(kind(f.type) for kind in kinds)]
    counts = ", ".join(f"approx_count_distinct({quoted(n)}), count({quoted(n)})" for n in names)
    rows, *answers = _one(connection, f"SELECT count(*), {counts} FROM samples")
    result = []
    for name, about, filled in zip(names, answers[::2], answers[1::2], strict=True):
        # the estimate is cheap, and spares the exact count of ids and captions
        if not filled or about > 2 * FEW_VALUES:
            continue
        value = quoted(name)
        top = connection.sql(
            f"SELECT {value}::VARCHAR, count(*) AS n FROM samples WHERE {value} IS NOT NULL"
            f" GROUP BY {value} ORDER BY n DESC, {value} LIMIT {FEW_VALUES + 1}"
        ).fetchall()
        if len(top) <= min(FEW_VALUES, max(3, filled // 2)):  # not ids or captions of a small set
            result.append(Text(name, filled / rows, len(top), dict(top[:TOP])))
    return result


def _aspects(connection: duckdb.DuckDBPyConnection, manifest: Manifest) -> list[dict[str, Any]]:
    if "aspect_bucket" not in manifest.schema.names:
        return []
    query = f"""
        SELECT aspect_bucket, count(*) AS n, count(*) FILTER (WHERE status = '{KEPT}') AS kept
        FROM samples WHERE aspect_bucket IS NOT NULL
        GROUP BY aspect_bucket ORDER BY n DESC, aspect_bucket"""
    return [{"bucket": b, "rows": n, "kept": kept} for b, n, kept in connection.sql(query).fetchall()]


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    (row,) = connection.sql(query).fetchall()
    return row
