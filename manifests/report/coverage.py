"""How many rows have a value in each column, and which faults rows have, by cause."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import FAILED, KEPT
from uhr.manifests.sql import quoted

EXAMPLES = 4
"""Number of files that are named per cause."""

MOST_CAUSES = 12
"""The largest number of causes of one kind of fault."""

_CAUSE = "regexp_replace(regexp_replace(coalesce(error, ''), '''[^'']*''', '…', 'g'), '[0-9]+', 'N', 'g')"
"""SQL of an error without names and numbers, which differ between files with the same cause."""


@dataclass(frozen=True)
class Filled:
    """A column, and the shares of all rows and of kept rows that have a value in it, in [0, 1]."""

    name: str
    stage: str
    meaning: str
    all: float
    kept: float


@dataclass(frozen=True)
class Cause:
    """One error of a kind of fault: its text in one of the files, the number of samples, and some of them."""

    text: str
    count: int
    examples: list[str]


@dataclass(frozen=True)
class FaultCount:
    """A kind of fault, the number of samples that failed with it, and its most frequent causes."""

    kind: str
    count: int
    causes: list[Cause]
    others: int


def coverage(connection: duckdb.DuckDBPyConnection, manifest: Manifest) -> list[Filled]:
    """Return the coverage of every column, in the order of the schema."""
    names = manifest.schema.names
    where = f"FILTER (WHERE status = '{KEPT}')"
    counts = ", ".join(f"count({quoted(name)}), count({quoted(name)}) {where}" for name in names)
    query = f"SELECT count(*), count(*) {where}, {counts} FROM samples"
    ((rows, kept, *found),) = connection.sql(query).fetchall()
    return [
        Filled(column.name, column.stage, column.meaning, every / max(rows, 1), of_kept / max(kept, 1))
        for column, every, of_kept in zip(manifest.columns, found[::2], found[1::2], strict=True)
    ]


def faults(connection: duckdb.DuckDBPyConnection) -> list[FaultCount]:
    """Return the kinds of fault, most frequent first, each with its causes."""
    query = f"""
        SELECT reason, count(*) AS n, min(error), min(uri, {EXAMPLES}) FROM samples WHERE status = '{FAILED}'
        GROUP BY reason, {_CAUSE} ORDER BY n DESC, reason, min(error)"""
    kinds: dict[str, list[Cause]] = {}
    for kind, count, text, examples in connection.sql(query).fetchall():
        kinds.setdefault(kind, []).append(Cause(text or "", count, examples))
    found = [
        FaultCount(
            kind,
            sum(cause.count for cause in causes),
            causes[:MOST_CAUSES],
            sum(cause.count for cause in causes[MOST_CAUSES:]),
        )
        for kind, causes in kinds.items()
    ]
    return sorted(found, key=lambda fault: (-fault.count, str(fault.kind)))
