"""Explain why an image was kept, rejected or failed: its columns by stage, and every rule with its values.
Check whether the verdicts of a manifest are those that its rules give.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.base.paths import is_utf8
from uhr.curate.faults import NO_VALUE, RULE_ERROR
from uhr.curate.rules import Judge, Rule, RuleCounts
from uhr.manifests.info import RuleInfo
from uhr.manifests.lineage import lineage
from uhr.manifests.manifest import Manifest
from uhr.manifests.places import place_of
from uhr.manifests.schema import FAILED, KEPT, REJECTED, VERDICT
from uhr.manifests.uris import uri_of
from uhr.manifests.verify.checks import EXAMPLES, VerifyFault, place_of_row

PASS, FAIL, NOT_EVALUATED = "pass", "fail", "not evaluated"
NOT_REACHED, NOT_MEASURED = "not reached", "not measured"


def explain(out: Path, sample: str) -> dict[str, Any]:
    """Return the verdict of `sample` (a sample id, the beginning of one, or a uri), its `columns` by stage,
    and all `rules`, each with `outcome` pass, fail, not evaluated (its stage did not run), not reached, or
    not measured (with `all_rules`: a stage of its columns has no value for the image, which was rejected
    before).

    `path` is None if no file has exactly the image's bytes, or if its name is not UTF-8, which JSON cannot
    represent; the uri names it then. Raises UserError if no sample, or more than one, has this name.
    """
    manifest = Manifest.open(out)
    return explain_row(manifest, _row(manifest, sample))


def explain_row(manifest: Manifest, row: dict[str, Any]) -> dict[str, Any]:
    """Return what `explain` returns, of a row that was read already."""
    verdict = {column.name: row[column.name] for column in VERDICT}
    path = manifest.source.open(row).path
    return {
        "manifest": str(manifest.path),
        "uri": row["uri"],
        "sample_id": row["sample_id"],
        "path": path if path is not None and is_utf8(path) else None,
        **verdict,
        "columns": _columns(manifest, row),
        "rules": list(_rules(manifest, row)),
        "skipped": [
            s.model_dump(include={"name", "adds", "why"})
            for s in manifest.info.stages
            if s.state == "skipped"
        ],
    }


def check_verdicts(manifest: Manifest) -> Iterator[VerifyFault]:
    """Evaluate the rules again on the columns that the rows have, and yield a fault for each verdict that
    they do not give, with the first such rows. Rows that a stage failed are left out: what it raised is not
    in the columns.

    Raises UserError if the rows are of a union, as they had the rules of several pipelines, or if the
    manifest lacks a column that a rule needs.
    """
    chain = lineage(place_of(manifest.path))
    if any(link["found"] and link["operation"].get("kind") == "union" for link in chain):
        what = f"{manifest.name} has rows of a union, which had the rules of several pipelines"
        raise UserError(what, "verify those that it was made of instead")
    infos = [info for info in manifest.info.rules if info.state != NOT_EVALUATED]
    rules = [(_rule_of(info), info.rows) for info in infos]
    columns = {"uri", "status", "reason", "parent_id", "channels"}.intersection(manifest.schema.names)
    for rule, _ in rules:
        columns |= rule.condition.columns
        if missing := sorted(rule.condition.columns.difference(manifest.schema.names)):
            what = f"{manifest.name} has no column {missing[0]}, which its rule {rule.name} needs"
            raise UserError(what, "verify the manifest that it was made from instead")
    judge = Judge(manifest.schema, _channels(manifest, infos))
    counts, examples, position = Counter[str](), dict[str, list[str]](), 0
    for batch in manifest.rows(sorted(columns)):
        rows = batch.to_pylist()
        for at, text in _differences(judge, rules, rows):
            counts[text] += 1
            if counts[text] <= EXAMPLES:
                place = place_of_row(manifest, position + at)
                examples.setdefault(text, []).append(f"{rows[at]['uri']} ({place})")
        position += len(rows)
    # what is not found may be a union, whose rows had other rules than those recorded here
    unsure = "" if all(link["found"] for link in chain) else "; a parent that is not found may be a union"
    for text, count in sorted(counts.items()):
        yield VerifyFault("rules", "status", f"{text}: {', '.join(examples[text])}{unsure}", count)


def _differences(
    judge: Judge, rules: Sequence[tuple[Rule, str]], rows: Sequence[dict[str, Any]]
) -> Iterator[tuple[int, str]]:
    """Yield the number of each row that has another verdict than the rules give, and what differs."""
    for of, is_patch in (("images", False), ("patches", True)):
        at = [i for i, row in enumerate(rows) if (row["parent_id"] is not None) == is_patch]
        own = [rule for rule, whose in rules if whose in ("", of)]
        unjudged = [rows[i] | {"channels": None} for i in at]
        for i, ruling in zip(at, judge.rulings(own, unjudged, RuleCounts()), strict=True):
            row, verdict = rows[i], ruling.verdict
            if row["status"] == FAILED and row["reason"] not in (NO_VALUE, RULE_ERROR):
                continue
            given = (KEPT, None) if verdict is None else verdict[:2]
            if (row["status"], row["reason"]) != given:
                yield i, f"is {_said(row['status'], row['reason'])}, and the rules give {_said(*given)}"
                continue
            left = None if verdict is not None else ruling.channels
            if left is not None and sorted(left) != sorted(row["channels"] or ()):
                yield i, f"is kept by {row['channels']}, and by the rules of {left}"


def _said(status: str, reason: str | None) -> str:
    return f"{status} ({reason})" if reason else status


def _channels(manifest: Manifest, infos: Iterable[RuleInfo]) -> list[str]:
    """Return the channels that have rules, or rows."""
    if "channels" not in manifest.schema.names:
        return []
    with manifest.connect() as connection:
        found = connection.sql("SELECT DISTINCT unnest(channels) FROM samples").fetchall()
    return sorted({name for (name,) in found} | {info.channel for info in infos if info.channel})


def _row(manifest: Manifest, sample: str) -> dict[str, Any]:
    """Find the row that `sample` names: a sample id, the beginning of one, a uri, the name below the source
    as it is on disk, or a path into the source.
    """
    first: UserError | None = None
    for name in _names(manifest.root, sample):
        try:
            return manifest.row(name)
        except UserError as error:
            first = first or error
    assert first is not None
    raise first from None


def _names(root: Path, sample: str) -> list[str]:
    """Return the names that a manifest may have for `sample`, most likely first, all of them UTF-8."""
    escaped = uri_of(sample)
    names = [sample] if is_utf8(sample) else []
    names.append(escaped)
    path = os.path.abspath(sample)
    for base in (os.path.abspath(root), os.path.realpath(root)):
        if path.startswith(base.rstrip("/") + "/"):
            names.append(uri_of(os.path.relpath(path, base)))
    return list(dict.fromkeys(names))


def _columns(manifest: Manifest, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the source's columns first, then those of each stage together, in the order of the pipeline."""
    shown = {"sample_id", "uri", *(column.name for column in VERDICT)}
    order = {stage.name: place for place, stage in enumerate(manifest.info.stages)}
    return [
        {
            "stage": c.stage or "source",
            "column": c.name,
            "value": row[c.name],
            "unit": c.unit,
            "range": c.range,
        }
        for c in sorted(manifest.columns, key=lambda c: order.get(c.stage, len(order)) if c.stage else -1)
        if c.name not in shown
    ]


def _rules(manifest: Manifest, row: dict[str, Any]) -> Iterable[dict[str, Any]]:
    judge = Judge(manifest.schema)
    unreached = _unreached(manifest, row)
    ended, rejected = unreached is None, False
    for info in manifest.info.rules:
        if info.rows and (info.rows == "patches") != (row["parent_id"] is not None):
            continue
        entry: dict[str, Any] = {"rule": info.name, "where": info.where, "values": {}}
        if info.channel:
            entry["channel"] = info.channel
        if info.state == NOT_EVALUATED:
            yield {**entry, "outcome": NOT_EVALUATED, "why": info.why}
            continue
        rule = _rule_of(info)
        entry["values"] = {name: row[name] for name in sorted(rule.condition.columns)}
        ended = ended or bool(rule.condition.columns.intersection(unreached or ()))
        outcome = NOT_REACHED if ended else _outcome(judge, rule, row)
        if rejected and outcome != NOT_REACHED and info.name not in (row.get("rejected_by") or ()):
            groups = manifest.info.measured_together(rule.condition.columns)
            if any(all(row.get(name) is None for name in group) for group in groups):
                outcome = NOT_MEASURED
        rejected = rejected or (row["status"] == REJECTED and row["reason"] == info.name)
        ended = ended or _ends_here(info, row, outcome)
        yield {**entry, "outcome": outcome, "why": row["error"] if outcome == FAIL and row["error"] else ""}


def _rule_of(info: RuleInfo) -> Rule:
    return Rule.parse(info.name, info.where, info.null or "fail", info.channel or None)


def _outcome(judge: Judge, rule: Rule, row: dict[str, Any]) -> str:
    value = judge.evaluate([rule], [row])[0][0]
    return PASS if value is True or (value is None and rule.null == "keep") else FAIL


def _ends_here(info: RuleInfo, row: dict[str, Any], outcome: str) -> bool:
    """Whether this rule gave the row its verdict, so that no later rule was evaluated."""
    if outcome != FAIL or "rejected_by" in row:
        return False
    if info.channel:
        return row["status"] == REJECTED and row["reason"] == info.name
    return row["status"] == REJECTED or row["reason"] in (NO_VALUE, RULE_ERROR)


def _unreached(manifest: Manifest, row: dict[str, Any]) -> set[str] | None:
    """Return the columns that the row lacks because a stage failed it (the error begins with the name of the
    stage); None if it failed before the first stage.
    """
    if row["status"] != FAILED or row["reason"] in (NO_VALUE, RULE_ERROR):
        return set()
    ran = [stage for stage in manifest.info.stages if stage.state == "ran"]
    failing = [place for place, stage in enumerate(ran) if (row["error"] or "").startswith(f"{stage.name}: ")]
    if not failing:
        return None
    return {name for stage in ran[failing[0] :] for name in stage.adds}
