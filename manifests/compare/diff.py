"""What changed between two manifests: rows, columns, rules, and why verdicts of samples changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from uhr.manifests.info import ManifestInfo, RuleInfo, StageInfo
from uhr.manifests.manifest import Manifest, connect
from uhr.manifests.schema import REJECTED, VERDICT
from uhr.manifests.selection.sets import check_unique
from uhr.manifests.sql import SqlCondition, quoted

EXAMPLES = 5
"""The largest number of samples that are named for each difference."""

_KEY = "sample_id"
_VERDICT = ("status", "reason")


@dataclass(frozen=True)
class Move:
    """Samples whose verdict is `before` in A and `after` in B, each (status, reason).

    `why` says for each cause how many of the samples it explains. `examples` are uris with the values, in A
    and in B, of the columns that decided.
    """

    before: tuple[str, str | None]
    after: tuple[str, str | None]
    rows: int
    why: dict[str, int]
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Diff:
    """The differences of two manifests, A (before) and B (after).

    a, b: their folders.

    rows: counts of `only_a`, `only_b`, `both`, and `changed`, those of `both` with another value in a common
    column. only_a, only_b: uris of some of them. columns: how many rows of `both` have another value, by
    column. added, removed: columns of one side alone. retyped: columns of another type, with both types.
    rules, stages: what was added, removed or changed, by name.
    """

    a: str
    b: str
    rows: dict[str, int]
    only_a: list[str]
    only_b: list[str]
    columns: dict[str, int]
    added: list[str]
    removed: list[str]
    retyped: dict[str, tuple[str, str]]
    rules: dict[str, str]
    stages: dict[str, str]
    moves: list[Move] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether rows, columns, rules and stages are equal."""
        counts = self.rows["only_a"] + self.rows["only_b"] + self.rows["changed"]
        return not (
            counts or self.added or self.removed or self.retyped or self.rules or self.stages or self.moves
        )


def diff(a: Manifest, b: Manifest) -> Diff:
    """Compare two manifests by `sample_id`. Raises UserError if one of them has a sample id twice."""
    types_a, types_b = _types(a.schema), _types(b.schema)
    common = [name for name in types_a if types_a[name] == types_b.get(name) and name != _KEY]
    with connect(a=a, b=b) as connection:
        for side, manifest in (("a", a), ("b", b)):
            check_unique(connection, side, manifest)
        counts, columns = _counts(connection, common)
        return Diff(
            a.name,
            b.name,
            counts,
            _missing(connection, "a", "b"),
            _missing(connection, "b", "a"),
            columns,
            [name for name in types_b if name not in types_a],
            [name for name in types_a if name not in types_b],
            {
                name: (str(types_a[name]), str(types_b[name]))
                for name in types_a
                if name in types_b and types_a[name] != types_b[name]
            },
            _rules(a.info, b.info),
            _stages(a.info, b.info),
            _moves(connection, a, b, common),
        )


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {column.name: column.type for column in schema}


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row


def _counts(
    connection: duckdb.DuckDBPyConnection, common: list[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Return the counts of rows, and of changed values by column, without columns that did not change."""
    both = f"FROM a JOIN b USING ({_KEY})"
    differs = [f"a.{quoted(name)} IS DISTINCT FROM b.{quoted(name)}" for name in common]
    sums = ", ".join(["count(*)", *(f"count(*) FILTER ({one})" for one in (*differs, " OR ".join(differs)))])
    shared, *changed, any_changed = _one(connection, f"SELECT {sums} {both}")
    sizes = {side: _one(connection, f"SELECT count(*) FROM {side}")[0] for side in ("a", "b")}
    rows = {"only_a": sizes["a"] - shared, "only_b": sizes["b"] - shared, "both": shared}
    by_column = {name: count for name, count in zip(common, changed, strict=True) if count}
    return {**rows, "changed": any_changed}, by_column


def _missing(connection: duckdb.DuckDBPyConnection, here: str, there: str) -> list[str]:
    query = f"SELECT uri FROM {here} ANTI JOIN {there} USING ({_KEY}) ORDER BY uri, {_KEY} LIMIT {EXAMPLES}"
    return [uri for (uri,) in connection.execute(query).fetchall()]


def _rules(a: ManifestInfo, b: ManifestInfo) -> dict[str, str]:
    def text(rule: RuleInfo) -> str:
        facts = [f"null: {rule.null}" if rule.null else "", f"channel {rule.channel}" if rule.channel else ""]
        facts += [f"of {rule.rows}" if rule.rows else ""]
        facts += ["" if rule.state == "evaluated" else f"not evaluated: {rule.why}"]
        known = "; ".join(fact for fact in facts if fact)
        return f"{rule.where} ({known})" if known else rule.where

    return _changed({r.name: text(r) for r in a.rules}, {r.name: text(r) for r in b.rules})


def _stages(a: ManifestInfo, b: ManifestInfo) -> dict[str, str]:
    def text(stage: StageInfo) -> str:
        version = f"version {stage.version}, fingerprint {stage.fingerprint[:12]}"
        return version if stage.state == "ran" else f"skipped: {stage.why}"

    return _changed({s.name: text(s) for s in a.stages}, {s.name: text(s) for s in b.stages})


def _changed(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """Say what became of each entry that is not equal on both sides."""
    found = {}
    for name in (*before, *(name for name in after if name not in before)):
        if name not in after:
            found[name] = f"removed: {before[name]}"
        elif name not in before:
            found[name] = f"added: {after[name]}"
        elif before[name] != after[name]:
            found[name] = f"{before[name]} -> {after[name]}"
    return found


def _moves(connection: duckdb.DuckDBPyConnection, a: Manifest, b: Manifest, common: list[str]) -> list[Move]:
    """Return the moves of verdicts, the most frequent first."""
    if not set(_VERDICT) <= set(common):
        return []
    moved = " OR ".join(f"a.{name} IS DISTINCT FROM b.{name}" for name in _VERDICT)
    found = connection.execute(
        f"""SELECT a.status, a.reason, b.status, b.reason, count(*) AS n FROM a JOIN b USING ({_KEY})
            WHERE {moved} GROUP BY ALL ORDER BY n DESC, a.status, a.reason, b.status, b.reason"""
    ).fetchall()
    moves = []
    for status_a, reason_a, status_b, reason_b, count in found:
        before, after = (status_a, reason_a), (status_b, reason_b)
        moves.append(_move(connection, a, b, common, before, after, count))
    return moves


def _move(
    connection: duckdb.DuckDBPyConnection,
    a: Manifest,
    b: Manifest,
    common: list[str],
    before: tuple[str, str | None],
    after: tuple[str, str | None],
    count: int,
) -> Move:
    """Say which rule changed, or which columns, for the samples of one move."""
    these = " AND ".join(f"{side}.{name} IS NOT DISTINCT FROM ?" for side in ("a", "b") for name in _VERDICT)
    values = [*before, *after]
    deciding = _deciding_columns((a, *before), (b, *after))
    why = _changed_rules(a, b, before, after, count)
    measured = [n for n in deciding if n in common] or [
        name for name in common if name not in {column.name for column in VERDICT}
    ]
    for name in measured:
        query = f"SELECT count(*) FROM a JOIN b USING ({_KEY}) WHERE {these}"
        query += f" AND a.{quoted(name)} IS DISTINCT FROM b.{quoted(name)}"
        (changed,) = connection.execute(query, values).fetchall()[0]
        if changed:
            why[f"another value of {name}"] = changed
    shown = [n for n in (*deciding, "error") if n in common]
    columns = ", ".join(["a.uri", *(f"a.{quoted(n)}, b.{quoted(n)}" for n in shown)])
    rows = connection.execute(
        f"SELECT {columns} FROM a JOIN b USING ({_KEY}) WHERE {these}"
        f" ORDER BY a.uri, {_KEY} LIMIT {EXAMPLES}",
        values,
    ).fetchall()
    examples = [
        {
            "uri": uri,
            **{
                name: {"a": pair[0], "b": pair[1]}
                for name, pair in zip(shown, zip(rest[::2], rest[1::2], strict=True), strict=True)
                if pair != (None, None)
            },
        }
        for uri, *rest in rows
    ]
    return Move(before, after, count, why, examples)


def _deciding_columns(*sides: tuple[Manifest, str, str | None]) -> list[str]:
    """Return the columns of the rules that rejected the samples, on either side."""
    names: dict[str, None] = {}
    for manifest, status, reason in sides:
        rule = _rule(manifest, reason) if status == REJECTED else None
        if rule is not None:
            names |= dict.fromkeys(sorted(SqlCondition.parse(rule.where, rule.name).columns))
    return list(names)


def _rule(manifest: Manifest, name: str | None) -> RuleInfo | None:
    return next((rule for rule in manifest.info.rules if rule.name == name), None)


def _changed_rules(
    a: Manifest, b: Manifest, before: tuple[str, str | None], after: tuple[str, str | None], count: int
) -> dict[str, int]:
    """Return the changes of the rules that rejected the samples, each with `count`."""
    reasons = [reason for status, reason in (before, after) if status == REJECTED and reason is not None]
    changes = _rules(a.info, b.info)
    return {f"rule {name}: {changes[name]}": count for name in _distinct(reasons) if name in changes}


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
