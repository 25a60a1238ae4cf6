"""Checks of the rows of a manifest, as SQL conditions that are true for a faulty row."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from uhr.base import parquet
from uhr.manifests.info import ManifestInfo
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import SOURCE_NAME, STATUSES, Column
from uhr.manifests.sql import literal, quoted

EXAMPLES = 3
"""Number of samples that a fault names as examples. Its count includes all samples."""


@dataclass(frozen=True)
class VerifyFault:
    """A fault of a manifest: the check that found it, where it is, what is wrong, and how often."""

    check: str
    where: str
    what: str
    count: int = 1


def check_rows(manifest: Manifest) -> Iterator[VerifyFault]:
    """Yield the faults of the rows: identity, order, verdicts, counts, ranges, previews."""
    with manifest.connect() as connection:
        for check, where, what, condition in (
            *_identity(SOURCE_NAME.name in manifest.schema.names),
            *_verdicts(manifest.info),
            *_ranges(manifest.columns),
        ):
            yield from _count(connection, check, where, what, condition)
        repeated = connection.sql(
            "SELECT sample_id, count(*) AS n FROM samples GROUP BY sample_id HAVING n > 1 ORDER BY sample_id"
        ).fetchall()
        if repeated:
            names = ", ".join(str(name) for name, _ in repeated[:EXAMPLES])
            yield VerifyFault("identity", "sample_id", f"is in several rows: {names}", len(repeated))
        yield from _counts(connection, manifest.info)
        yield from _previews(connection, manifest)
    yield from _order(manifest)


Check = tuple[str, str, str, str]
"""(check, column, what is wrong, SQL condition that is true for a faulty row)"""


def _identity(named: bool) -> Iterator[Check]:
    yield "identity", "sample_id", "or uri is null", "sample_id IS NULL OR uri IS NULL"
    # as in schema.sample_id
    text = "coalesce(source_name || ':', '') || uri" if named else "uri"
    whole = f"sample_id <> sha256({text})[1:32]"
    yield "identity", "sample_id", "is not the hash of its uri", f"parent_id IS NULL AND {whole}"
    # as in schema.patch_id
    patch = "sample_id IS DISTINCT FROM sha256(parent_id || '#' || array_to_string(box, ','))[1:32]"
    yield "identity", "sample_id", "is not the hash of parent and box", f"parent_id IS NOT NULL AND {patch}"


def _verdicts(info: ManifestInfo) -> Iterator[Check]:
    statuses = ", ".join(map(literal, STATUSES))
    yield "verdicts", "status", "is not one of the three", f"status IS NULL OR status NOT IN ({statuses})"
    yield "verdicts", "reason", "of a kept sample", "status = 'kept' AND reason IS NOT NULL"
    yield "verdicts", "error", "of a sample that has not failed", "status <> 'failed' AND error IS NOT NULL"
    rules = ", ".join(literal(rule.name) for rule in info.rules) or "NULL"
    unknown = f"status = 'rejected' AND (reason IS NULL OR coalesce(reason NOT IN ({rules}), true))"
    yield "verdicts", "reason", "of a rejected sample is not a rule", unknown
    silent = "status = 'failed' AND (reason IS NULL OR error IS NULL)"
    yield "verdicts", "error", "or reason of a failed sample is missing", silent


def _ranges(columns: list[Column]) -> Iterator[Check]:
    for column in columns:
        outside = outside_range(column)
        if outside:
            yield "ranges", column.name, f"is outside of {column.range}", outside


def outside_range(column: Column) -> str | None:
    """Return SQL that is true if a value is outside of the column's range; None if it has no numeric range.

    Ranges are `[a, b]`, `a..b`, `> a` and `>= a`; NaN is outside of each.
    """
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return None
    name, number = quoted(column.name), r"(-?\d+(?:\.\d+)?)"
    not_a_number = f"isnan({name}::DOUBLE) OR"
    if match := re.fullmatch(rf"\[{number}, {number}\]|{number}\.\.{number}", column.range):
        low, high = (bound for bound in match.groups() if bound is not None)
        return f"{not_a_number} {name} < {low} OR {name} > {high}"
    if match := re.fullmatch(rf"(>=?) {number}", column.range):
        return f"{not_a_number} NOT ({name} {match[1]} {match[2]})"
    return None


def _count(
    connection: duckdb.DuckDBPyConnection, check: str, where: str, what: str, condition: str
) -> Iterator[VerifyFault]:
    (row,) = connection.sql(
        f"SELECT count(*), min(uri), max(uri) FROM samples WHERE {condition}"  # min and max: examples
    ).fetchall()
    count, first, last = row
    if count:
        names = str(first) if first == last else f"{first} ... {last}"
        yield VerifyFault(check, where, f"{what}: {names}", count)


def _counts(connection: duckdb.DuckDBPyConnection, info: ManifestInfo) -> Iterator[VerifyFault]:
    statuses = dict(connection.sql("SELECT status, count(*) FROM samples GROUP BY status").fetchall())
    reasons = dict(
        connection.sql(
            "SELECT reason, count(*) FROM samples WHERE reason IS NOT NULL GROUP BY reason"
        ).fetchall()
    )
    found: dict[str, Any] = {status: statuses.get(status, 0) for status in STATUSES}
    found = {"rows": sum(statuses.values()), **found, "reasons": reasons}
    for name, value in found.items():
        if info.counts.get(name) != value:
            yield VerifyFault(
                "counts", name, f"is {value} in the parts and {info.counts.get(name)} in manifest.json"
            )


def _previews(connection: duckdb.DuckDBPyConnection, manifest: Manifest) -> Iterator[VerifyFault]:
    ids = [parquet.read(manifest.path / part.path, ["sample_id"]) for part in manifest.info.previews]
    if not ids:
        return
    connection.register("previews", pa.concat_tables(ids))
    orphans = "SELECT sample_id FROM previews ANTI JOIN samples USING (sample_id)"
    twice = "SELECT sample_id FROM previews GROUP BY sample_id HAVING count(*) > 1"
    for what, query in (("belongs to no sample", orphans), ("occurs several times", twice)):
        found = connection.sql(f"{query} ORDER BY sample_id").fetchall()
        if found:
            names = ", ".join(str(name) for (name,) in found[:EXAMPLES])
            yield VerifyFault("previews", "sample_id", f"{what}: {names}", len(found))


def _order(manifest: Manifest) -> Iterator[VerifyFault]:
    last: str | None = None
    for batch in manifest.rows(columns=["uri"]):
        uris = batch.column("uri").drop_null()
        if len(uris) == 0:
            continue
        first = uris[0].as_py()
        falls = any(after < before for before, after in itertools.pairwise(uris.to_pylist()))
        if falls or (last is not None and first < last):
            yield VerifyFault("order", "uri", "the rows are not sorted by it")
            return
        last = uris[-1].as_py()
