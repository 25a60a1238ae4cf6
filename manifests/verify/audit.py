"""Audit: what decided of each image and rule: value, threshold, stage, weights, evidence of rights."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import duckdb
import pyarrow as pa

from uhr.base import parquet
from uhr.base.config import canonical_json
from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.base.store import output_file
from uhr.manifests import places, sql
from uhr.manifests.info import ManifestInfo, RuleInfo
from uhr.manifests.lineage import lineage
from uhr.manifests.manifest import Manifest
from uhr.manifests.sql import SqlCondition, finite_column, literal, quoted
from uhr.manifests.verify.checks import REVIEW, REVIEWED

EVIDENCE = (
    *("source_name", "source_url", "final_url", "fetch_time", "http_status", "etag", "contract"),
    *("author", "license", "license_spdx", "license_problem", "opt_out", "opt_out_headers"),
    *("embedded_creator", "embedded_copyright", "embedded_license", "data_mining", "digital_source_type"),
    *("c2pa", "rights_fault", "blocklist_match"),
)
"""Columns that are evidence of rights; those that a manifest has are in its audit."""

Link = dict[str, Any]
"""A manifest of a lineage, as `lineage` returns it."""

_FIRST = ("sample_id", "uri", "parent_id", "content_hash", "status", "reason", "error")
_ROWS = 20_000
"""Rows that are judged at a time."""


@dataclass(frozen=True)
class AuditResult:
    """The audit that was written: its file, the images and the lines in it."""

    path: str
    images: int
    lines: int


def audit(
    manifest: Manifest,
    out: Path | str,
    where: str | None = None,
    advance: Advance = lambda n=1, note=None: None,
) -> AuditResult:
    """Write a line for each row for which the condition `where` is true and each rule that applies to it, to
    the file `out`, a path or an address.

    A line has the row's identity and verdict; the rule, its condition (the threshold), what it came to and
    the values of its columns as JSON; the stages of these columns with versions, fingerprints and hashes of
    their weights and files as JSON; when and with which software it was decided; the evidence of rights; the
    review. A row to which no rule applies has one line without a rule. Lines are in the order of rows, then
    of rules.

    `outcome` is `rejected` (this rule rejects the row), `passed`, `failed` (its condition is false, and
    another rule or another channel decided), `no value`, `not evaluated` (its stage did not run), `not
    reached`: an earlier rule or a fault ended the row, so that the columns may not have been measured, or
    `not measured`: with `all_rules`, an earlier rule rejected the row, and a stage of the columns has no
    value for it, as those of models and over the set, which see only what is kept.

    Raises UserError if `out` is neither .parquet nor .csv or is inside a manifest, if the condition is
    invalid, or if a review lacks name, time or reason.
    """
    kind = PurePath(out).suffix.lower()
    if kind not in (".parquet", ".csv"):
        raise UserError(f"--out {out} is neither .parquet nor .csv", "name it with one of these endings")
    places.check_outside(out)
    condition = None
    if where is not None:
        condition = SqlCondition.parse(where, "--where")
        condition.check(manifest.schema)
    _check_reviews(manifest)
    images = lines = 0
    query = _query(manifest)
    with (
        output_file(out, "free space there, then repeat the command", f"audit{kind}") as temporary,
        _table(temporary, kind) as write,
    ):
        for rows in _batches(manifest):
            read = rows.num_rows
            with sql.connect(samples=rows) as connection:
                if condition is not None:
                    try:
                        rows = connection.sql(
                            f"SELECT * FROM samples WHERE {condition.sql_for(connection)}"
                        ).to_arrow_table()
                    except duckdb.Error as error:
                        raise condition.error_from(error) from None
            with sql.connect(chosen=rows.append_column("row", pa.array(range(rows.num_rows)))) as connection:
                found = connection.sql(query).to_arrow_table()
            write(found)
            images += rows.num_rows
            lines += found.num_rows
            advance(read)
    return AuditResult(str(out), images, lines)


def _check_reviews(manifest: Manifest) -> None:
    """Raise UserError if a verdict by hand lacks the name of its reviewer, the time or the reason."""
    names = manifest.schema.names
    if REVIEW not in names:
        return
    lacks = [
        f"{quoted(name)} IS NULL OR trim({quoted(name)}) = ''" if name in names else "true"
        for name in REVIEWED
    ]
    with manifest.connect() as connection:
        ((count, uri),) = connection.sql(
            f"SELECT count(*), min(uri) FROM samples WHERE {REVIEW} IS NOT NULL AND ({' OR '.join(lacks)})"
        ).fetchall()
    if count:
        raise UserError(
            f"{manifest.name}: the review of {count:,} rows, such as {uri}, lacks one of "
            f"{', '.join(REVIEWED)}",
            "give each verdict a name, a time and a reason",
        )


def _batches(manifest: Manifest) -> Iterator[pa.Table]:
    if not manifest.info.counts["rows"]:
        yield manifest.schema.empty_table()  # the file has its columns
    for batch in manifest.rows():
        for start in range(0, batch.num_rows, _ROWS):
            yield pa.Table.from_batches([batch.slice(start, _ROWS)])


def _query(manifest: Manifest) -> str:
    """Return SQL that makes the lines of the rows in the relation `chosen`, which has their number `row`."""
    names = manifest.schema.names
    chain = [link for link in lineage(places.place_of(manifest.path)) if link["found"]]
    time, software = _decided(manifest.info, chain)
    own = [quoted(name) for name in (*_FIRST, *EVIDENCE, REVIEW, *REVIEWED) if name in names]
    with sql.connect(samples=manifest.schema.empty_table()) as connection:
        numbers = range(len(manifest.info.rules))
        parts = [_of_rule(manifest, number, chain, connection) for number in numbers]
    applies = [part[0] for part in parts]
    none = " AND ".join(f"NOT coalesce({each}, false)" for each in applies) or "true"
    empty = ", ".join(f"NULL::VARCHAR AS {name}" for name in _OF_RULE)
    selects = [part[1] for part in parts]
    selects.append(f"SELECT *, {len(parts)} AS number, {empty} FROM chosen WHERE {none}")
    first = ", ".join(own[: len([name for name in _FIRST if name in names])])
    rest = ", ".join(own[len([name for name in _FIRST if name in names]) :])
    columns = [first, *_OF_RULE, f"{literal(time)} AS decided", f"{literal(software)} AS decided_by"]
    columns += [rest] if rest else []
    return f'SELECT {", ".join(columns)} FROM ({" UNION ALL BY NAME ".join(selects)}) ORDER BY "row", number'


_OF_RULES = ("no value", "rule error")
"""The reasons of rows that a rule failed; their errors begin with the rule."""

_OF_RULE = ("rule", "outcome", "threshold", "missing", "channel", "value", "stages", "weights", "files")


def _of_rule(
    manifest: Manifest, number: int, chain: Sequence[Link], connection: duckdb.DuckDBPyConnection
) -> tuple[str, str]:
    """Return SQL for whether a rule applies to a row, and for its lines."""
    schema, rule = manifest.schema, manifest.info.rules[number]
    condition = SqlCondition.parse(rule.where, f"rule '{rule.name}'")
    columns = sorted(name for name in condition.columns if name in schema.names)
    applies = {"images": "parent_id IS NULL", "patches": "parent_id IS NOT NULL"}.get(rule.rows, "true")
    rejected = f"status = 'rejected' AND reason = {literal(rule.name)}"
    if "rejected_by" in schema.names:
        rejected = f"({rejected}) OR coalesce(list_contains(rejected_by, {literal(rule.name)}), false)"
    if rule.state != "evaluated" or not condition.columns <= set(schema.names):
        outcome = literal(f"not evaluated{f': {rule.why}' if rule.why else ''}")
    else:
        true = condition.sql_for(connection)
        outcome = (
            f"CASE WHEN {rejected} THEN 'rejected' WHEN {_ended(manifest, number)} THEN 'not reached' "
            f"WHEN {_not_measured(manifest, number, condition)} THEN 'not measured' "
            f"WHEN {true} THEN 'passed' WHEN NOT ({true}) THEN 'failed' ELSE 'no value' END"
        )
    pairs = []
    for name in columns:
        floating = pa.types.is_floating(schema.field(name).type)
        pairs.append(f"{literal(name)}, {finite_column(name) if floating else quoted(name)}")
    value = f"json_object({', '.join(pairs)})::VARCHAR" if pairs else "NULL::VARCHAR"
    stages, weights, files = _made_by(chain, columns)
    facts = {
        "rule": literal(rule.name),
        "outcome": outcome,
        "threshold": literal(rule.where),
        "missing": literal(rule.null or "fail"),
        "channel": literal(rule.channel) if rule.channel else "NULL::VARCHAR",
        "value": value,
        "stages": literal(stages),
        "weights": literal(weights),
        "files": literal(files),
    }
    made = ", ".join(f"{text} AS {name}" for name, text in facts.items())
    return applies, f"SELECT *, {number} AS number, {made} FROM chosen WHERE {applies}"


def _ended(manifest: Manifest, number: int) -> str:
    """Return SQL for whether a row had its verdict before rule `number` was evaluated, as `explain` finds it.

    With `all_rules` a rejected row goes on to the later rules.
    """
    rules = manifest.info.rules
    earlier = _before(rules, number)
    of_rules = ", ".join(map(literal, _OF_RULES))
    ended = []
    if earlier and "rejected_by" not in manifest.schema.names:
        names = ", ".join(literal(each.name) for each in earlier)
        ended.append(f"status = 'rejected' AND reason IN ({names})")
    if earlier:
        fault = _begins(f"rule '{each.name}' (" for each in earlier)
        ended.append(f"status = 'failed' AND reason IN ({of_rules}) AND ({fault})")
    needed: set[str] = set()
    for each in (*earlier, rules[number]):
        if each.state == "evaluated":
            needed |= SqlCondition.parse(each.where, f"rule '{each.name}'").columns
    stages = [stage for stage in manifest.info.stages if stage.state == "ran"]
    last = max((at for at, stage in enumerate(stages) if not needed.isdisjoint(stage.adds)), default=-1)
    # the stage that failed is not after those of the columns, or the row failed before any stage
    before = _begins(f"{stage.name}: " for stage in stages[: last + 1])
    none = f"NOT coalesce({_begins(f'{stage.name}: ' for stage in stages)}, false)"
    ended.append(f"status = 'failed' AND reason NOT IN ({of_rules}) AND (({before}) OR {none})")
    return f"coalesce({' OR '.join(f'({each})' for each in ended)}, false)"


def _not_measured(manifest: Manifest, number: int, condition: SqlCondition) -> str:
    """Return SQL for whether a row was rejected before rule `number`, went on with `all_rules`, and has no
    value of a stage that writes columns of the rule.
    """
    names = manifest.schema.names
    groups = manifest.info.measured_together(condition.columns)
    nulls = [" AND ".join(f"{quoted(each)} IS NULL" for each in group if each in names) for group in groups]
    earlier = ", ".join(literal(each.name) for each in _before(manifest.info.rules, number))
    if "rejected_by" not in names or not nulls or not earlier:
        return "false"
    reason = f"status = 'rejected' AND reason IN ({earlier})"
    return f"coalesce({reason} AND ({' OR '.join(f'({each})' for each in nulls)}), false)"


def _before(rules: Sequence[RuleInfo], number: int) -> list[RuleInfo]:
    """Return the rules that rows of rule `number` reach before it."""
    return [each for each in rules[:number] if {each.rows, rules[number].rows} != {"images", "patches"}]


def _begins(texts: Iterable[str]) -> str:
    """Return SQL for whether the error of a row begins with one of these texts."""
    return " OR ".join(f"starts_with(error, {literal(text)})" for text in texts) or "false"


def _made_by(chain: Sequence[Link], columns: Sequence[str]) -> tuple[str, str, str]:
    """Return the stages that wrote the columns, their weights and their other files, each as JSON. Those that
    a manifest has from its parent were written by the parent's stages.
    """
    known: dict[str, dict[str, Any]] = {}
    trees: dict[str, dict[str, str]] = {"weights": {}, "files": {}}
    left = {*columns}
    for link in chain:
        wrote = [
            each for each in link["stages"] if each["state"] == "ran" and left.intersection(each["adds"])
        ]
        for stage in wrote:
            left -= {*stage["adds"]}
            known.setdefault(stage["name"], {name: stage[name] for name in ("version", "fingerprint")})
        names = {stage["name"] for stage in wrote}
        for kind, tree in trees.items():
            of = {key: hash_ for key, hash_ in link[kind].items() if key.partition("/")[0] in names}
            trees[kind] = of | tree
    return canonical_json(known), canonical_json(trees["weights"]), canonical_json(trees["files"])


def _decided(info: ManifestInfo, chain: Sequence[Link]) -> tuple[str, str]:
    """Return when the rules were evaluated, and the software: of the curation that the rows come from, or of
    the manifest itself if that is not found.
    """
    for link in chain:
        if link["operation"].get("kind") == "curate":
            return link["created"], f"uhr {link['uhr']}"
    return info.created, f"uhr {info.uhr}"


@contextlib.contextmanager
def _table(out: Path, kind: str) -> Generator[Any]:
    """Yield a function that appends a table to the new file `out`."""
    with contextlib.ExitStack() as opened:
        writer: Any = None

        def write(table: pa.Table) -> None:
            nonlocal writer
            if writer is None and kind == ".csv":
                from pyarrow import csv

                writer = opened.enter_context(csv.CSVWriter(str(out), table.schema))
            elif writer is None:
                writer = opened.enter_context(parquet.writer(out, table.schema, compression="zstd"))
            writer.write_table(table)

        yield write
