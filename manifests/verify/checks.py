"""Checks of the rows of a manifest, as SQL conditions that are true for a faulty row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from uhr.base import parquet
from uhr.manifests import places
from uhr.manifests.info import ManifestInfo
from uhr.manifests.lineage import lineage
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import SOURCE_NAME, STATUSES, Column
from uhr.manifests.sql import literal, quoted
from uhr.manifests.verify.scan import scan

REVIEW = "review"
REVIEWED = ("review_by", "review_time", "review_reason")
"""The column of verdicts by hand, and those that each such verdict needs."""

EXAMPLES = 3
"""Number of samples that a fault names as examples. Its count includes all samples."""


@dataclass(frozen=True)
class VerifyFault:
    """A fault of a manifest: the check that found it, where it is, what is wrong, and how often."""

    check: str
    where: str
    what: str
    count: int = 1


class Check(NamedTuple):
    """A check of rows: its kind, the column, what is wrong, and SQL that is true for a faulty row."""

    check: str
    where: str
    what: str
    condition: str


def check_rows(manifest: Manifest) -> Iterator[VerifyFault]:
    """Yield the faults of the rows: identity, order, verdicts, counts, ranges, coverage, previews."""
    with manifest.connect() as connection:
        values, names = _values_in(connection, manifest), manifest.schema.names
        named, patches = SOURCE_NAME.name in names, values["parent_id"] > 0
        identity = list(_identity(named, patches))
        checks = [
            *identity,
            *_reviews(names),
            *_ranges([column for column in manifest.columns if values[column.name]]),
            *_coverage_of_stages(manifest),
        ]
        columns = {*(check.where for check in checks), "uri", "status", "reason", "error"}
        columns |= {SOURCE_NAME.name, *(("parent_id", "box") if patches else ())}
        columns |= {*REVIEWED} if REVIEW in columns else set()
        found = scan(manifest, [check.condition for check in checks], [n for n in names if n in columns])
        yield from _faulty(connection, manifest, zip(checks, found.counts, strict=True))
        connection.register("verdicts", found.verdicts)
        yield from _faulty(connection, manifest, _counted(connection, list(_verdicts(manifest.info))))
        if any(found.counts[: len(identity)]) or named or patches or not found.rising:
            # else ids are the hashes of different uris
            yield from _repeated(connection, manifest)
        if patches:
            yield from _orphans(connection, manifest)
        yield from _counts(connection, manifest.info)
        yield from _coverage(values, manifest)
        yield from _previews(connection, manifest)
    if found.falls_at is not None:
        row = place_of_row(manifest, found.falls_at)
        yield VerifyFault("order", "uri", f"the rows are not sorted by it: {row}")


def _faulty(
    connection: duckdb.DuckDBPyConnection, manifest: Manifest, counted: Iterable[tuple[Check, int]]
) -> Iterator[VerifyFault]:
    """Yield a fault for each check that counted rows."""
    for check, count in counted:
        if count:
            named = _examples(connection, manifest, check.condition)
            yield VerifyFault(check.check, check.where, f"{check.what}: {named}", count)


def _counted(connection: duckdb.DuckDBPyConnection, checks: Sequence[Check]) -> Iterable[tuple[Check, int]]:
    """Return each check of verdicts with the number of rows for which its condition is true."""
    sums = ", ".join(f"coalesce(sum(n) FILTER ({check.condition}), 0)::BIGINT" for check in checks)
    return zip(checks, connection.sql(f"SELECT {sums} FROM verdicts").fetchall()[0], strict=True)


def _examples(connection: duckdb.DuckDBPyConnection, manifest: Manifest, condition: str) -> str:
    """Name the first rows for which the condition is true, with part and row."""
    rows = connection.sql(
        f"""SELECT position, uri FROM (SELECT row_number() OVER () - 1 AS position, * FROM samples)
            WHERE {condition} ORDER BY position LIMIT {EXAMPLES}"""
    ).fetchall()
    return ", ".join(f"{uri} ({place_of_row(manifest, position)})" for position, uri in rows)


def place_of_row(manifest: Manifest, position: int) -> str:
    """Return the part of a row and its number there, from 0: `samples/part-00001.parquet row 17`."""
    for part in manifest.info.parts:
        if position < part.rows:
            return f"{part.path} row {position}"
        position -= part.rows
    raise AssertionError("the position is past the last row")


def _identity(named: bool, patches: bool) -> Iterator[Check]:
    yield Check("identity", "sample_id", "or uri is null", "sample_id IS NULL OR uri IS NULL")
    # as in schema.sample_id
    text = "coalesce(source_name || ':', '') || uri" if named else "uri"
    whole = f"(strlen(sample_id) <> 32 OR NOT starts_with(sha256({text}), sample_id))"
    if not patches:
        yield Check("identity", "sample_id", "is not the hash of its uri", whole)
        return
    yield Check("identity", "sample_id", "is not the hash of its uri", f"parent_id IS NULL AND {whole}")
    # as in schema.patch_id
    patch = "sample_id IS DISTINCT FROM sha256(parent_id || '#' || array_to_string(box, ','))[1:32]"
    yield Check(
        "identity", "sample_id", "is not the hash of parent and box", f"parent_id IS NOT NULL AND {patch}"
    )


def _verdicts(info: ManifestInfo) -> Iterator[Check]:
    statuses = ", ".join(map(literal, STATUSES))
    unknown = f"status IS NULL OR status NOT IN ({statuses})"
    yield Check("verdicts", "status", "is not one of the three", unknown)
    yield Check("verdicts", "reason", "of a kept sample", "status = 'kept' AND reason IS NOT NULL")
    yield Check(
        "verdicts", "error", "of a sample that has not failed", "status <> 'failed' AND error IS NOT NULL"
    )
    rules = ", ".join(literal(rule.name) for rule in info.rules) or "NULL"
    no_rule = f"status = 'rejected' AND (reason IS NULL OR coalesce(reason NOT IN ({rules}), true))"
    yield Check("verdicts", "reason", "of a rejected sample is not a rule", no_rule)
    silent = "status = 'failed' AND (reason IS NULL OR error IS NULL)"
    yield Check("verdicts", "error", "or reason of a failed sample is missing", silent)


def _reviews(names: Sequence[str]) -> Iterator[Check]:
    """A verdict by hand needs the name of its reviewer, the time and a reason."""
    if REVIEW not in names:
        return
    for name in REVIEWED:
        lacks = f"{quoted(name)} IS NULL OR trim({quoted(name)}) = ''" if name in names else "true"
        yield Check("verdicts", REVIEW, f"has no {name}", f"{REVIEW} IS NOT NULL AND ({lacks})")


def _ranges(columns: list[Column]) -> Iterator[Check]:
    for column in columns:
        outside = outside_range(column)
        if outside:
            yield Check("ranges", column.name, f"is outside of {column.range}", outside)


def _coverage_of_stages(manifest: Manifest) -> Iterator[Check]:
    """A stage that was skipped has written no value. A manifest that was curated again has those of the
    stages that ran for its parents.
    """
    skipped = [stage for stage in manifest.info.stages if stage.state == "skipped"]
    chain = lineage(places.place_of(manifest.path)) if skipped else []
    if not all(link["found"] for link in chain):
        return  # what wrote the values is not known
    ran = {n for link in chain for stage in link["stages"] if stage["state"] == "ran" for n in stage["adds"]}
    for stage in skipped:
        for name in stage.adds:
            if name in manifest.schema.names and name not in ran:
                what = f"has values, and its stage {stage.name} was skipped"
                yield Check("coverage", name, what, f"{quoted(name)} IS NOT NULL")


def outside_range(column: Column) -> str | None:
    """Return SQL that is true if a value is outside of the column's range; None if it has no numeric range.

    Ranges are `[a, b]`, `[a, b)`, `a..b`, `> a` and `>= a`; NaN is outside of each: in SQL it is the largest
    number.
    """
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return None
    name, number = quoted(column.name), r"(-?\d+(?:\.\d+)?)"
    if match := re.fullmatch(rf"\[{number}, {number}\]|{number}\.\.{number}", column.range):
        low, high = (bound for bound in match.groups() if bound is not None)
        return f"{name} < {low} OR {name} > {high}"
    if match := re.fullmatch(rf"\[{number}, {number}\)", column.range):
        return f"{name} < {match[1]} OR {name} >= {match[2]}"
    if match := re.fullmatch(rf"(>=?) {number}", column.range):
        not_a_number = f" OR isnan({name}::DOUBLE)" if pa.types.is_floating(column.type) else ""
        return f"NOT ({name} {match[1]} {match[2]}){not_a_number}"
    return None


def _repeated(connection: duckdb.DuckDBPyConnection, manifest: Manifest) -> Iterator[VerifyFault]:
    """Sample ids of several rows. Their hashes are sorted first: two ids of one hash are compared then."""
    hashes = connection.sql("SELECT hash(sample_id) AS key FROM samples").to_arrow_table()["key"].to_numpy()
    hashes = np.sort(hashes)
    twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(twice):
        return
    connection.register("twice", pa.table({"key": twice}))
    found = connection.sql(
        """SELECT sample_id, list(position) FROM (
               SELECT row_number() OVER () - 1 AS position, sample_id FROM samples
           ) WHERE hash(sample_id) IN (SELECT key FROM twice)
           GROUP BY sample_id HAVING count(*) > 1 ORDER BY sample_id"""
    ).fetchall()
    if found:
        named = ", ".join(
            f"{name} ({', '.join(place_of_row(manifest, one) for one in sorted(places)[:EXAMPLES])})"
            for name, places in found[:EXAMPLES]
        )
        yield VerifyFault("identity", "sample_id", f"is in several rows: {named}", len(found))


def _orphans(connection: duckdb.DuckDBPyConnection, manifest: Manifest) -> Iterator[VerifyFault]:
    """Patches without the image that they were cut from, where the manifest has all rows of its run."""
    if manifest.info.operation.get("kind") != "curate" or manifest.info.redactions:
        return
    orphan = (
        "parent_id IS NOT NULL AND parent_id NOT IN (SELECT sample_id FROM samples WHERE parent_id IS NULL)"
    )
    count = connection.sql(f"SELECT count(*) FROM samples WHERE {orphan}").fetchall()[0][0]
    if count:
        named = _examples(connection, manifest, orphan)
        yield VerifyFault("identity", "parent_id", f"is the id of no row: {named}", count)


def _values_in(connection: duckdb.DuckDBPyConnection, manifest: Manifest) -> dict[str, int]:
    """Return the number of values of each column: from the footers of the parts where these count nulls,
    which they do for plain columns.
    """
    rows = sum(part.rows for part in manifest.info.parts)
    nulls = dict.fromkeys(manifest.schema.names, 0)
    counted = set(nulls).intersection(manifest.stored_schema.names)
    for part in manifest.info.parts:
        with parquet.opened(manifest.path / part.path) as file:
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                for number in range(metadata.num_columns):
                    column = metadata.column(number)
                    stats = column.statistics
                    if column.path_in_schema in counted and stats is not None and stats.has_null_count:
                        nulls[column.path_in_schema] += stats.null_count
                    else:
                        counted.discard(column.path_in_schema.partition(".")[0])
    found = {name: rows - nulls[name] for name in nulls if name in counted}
    others = [name for name in nulls if name not in counted]
    if others:
        sums = ", ".join(f"count({quoted(name)})" for name in others)
        found |= zip(others, connection.sql(f"SELECT {sums} FROM samples").fetchall()[0], strict=True)
    return found


def _coverage(values: Mapping[str, int], manifest: Manifest) -> Iterator[VerifyFault]:
    """Columns that have another number of values than `manifest.json` says."""
    stated = manifest.info.coverage
    if not stated:
        return  # of a manifest of version 1
    for name, count in values.items():
        if name in stated and count != stated[name]:
            what = f"has {count:,} values in the parts, and manifest.json says {stated[name]:,}"
            yield VerifyFault("coverage", name, what)
    for name in sorted({field.name for field in manifest.own_fields} ^ {*stated}):
        where = "only in the parts" if name not in stated else "only in the coverage of manifest.json"
        yield VerifyFault("coverage", name, f"is {where}")


def _counts(connection: duckdb.DuckDBPyConnection, info: ManifestInfo) -> Iterator[VerifyFault]:
    statuses: Counter[str | None] = Counter()
    reasons: Counter[str] = Counter()
    for status, reason, count in connection.sql("SELECT status, reason, n FROM verdicts").fetchall():
        statuses[status] += count
        if reason is not None:
            reasons[reason] += count
    found = {"rows": statuses.total(), **{status: statuses.get(status, 0) for status in STATUSES}}
    for name, value in found.items():
        if info.counts[name] != value:
            yield VerifyFault(
                "counts", name, f"is {value} in the parts and {info.counts[name]} in manifest.json"
            )
    stated = info.counts["reasons"]
    for reason in sorted({*reasons, *stated}):
        value, says = reasons[reason], stated.get(reason, 0)
        if value != says:
            what = f"'{reason}' is that of {value} in the parts and {says} in manifest.json"
            yield VerifyFault("counts", "reasons", what)


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
