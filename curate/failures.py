"""What went wrong in a finished run, or was odd about what was kept, by the message that is most frequent."""

from __future__ import annotations

from typing import NamedTuple

from uhr.curate.faults import NO_VALUE, RULE_ERROR
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import FAILED, KEPT


class Failures(NamedTuple):
    """`commonest`: kind of fault -> the error most often met, and on how many rows (a list of one; none where
    rows have no words). `always`: the rules that gave an error or no value on every row that they saw.
    """

    commonest: dict[str, list[tuple[str, int]]]
    always: list[str]


def failures_of(manifest: Manifest) -> Failures:
    """Counted over the rows of `manifest`."""
    commonest: dict[str, list[tuple[str, int]]] = {}
    by_rule = {rule.name: 0 for rule in manifest.info.rules if rule.state == "evaluated"}
    if not manifest.info.counts["failed"]:
        return Failures(commonest, [])
    with manifest.connect() as connection:
        query = "SELECT reason, error, count(*) AS n FROM samples WHERE status = $1 AND error IS NOT NULL "
        rows = connection.execute(
            query + "GROUP BY reason, error ORDER BY n DESC, error", [FAILED]
        ).fetchall()
    for reason, error, count in rows:
        commonest.setdefault(reason, [(error, count)])
        if reason in (NO_VALUE, RULE_ERROR):
            for name in by_rule:
                # as rules.Judge words it; the value in the error may differ from row to row
                by_rule[name] += count if error.startswith(f"rule '{name}' (") else 0
    seen = {rule.name: rule.seen for rule in manifest.info.rules}
    return Failures(commonest, [name for name, n in by_rule.items() if n and n == seen[name]])


class Noted(NamedTuple):
    """How many kept images have notes of their decoder; the most frequent note, and how many have it."""

    rows: int
    note: str
    times: int


def noted_in(manifest: Manifest) -> Noted | None:
    """None if no kept row has a note, or nothing was decoded."""
    if "notes" not in manifest.schema.names:
        return None
    query = "SELECT notes, count(*) AS n FROM samples WHERE status = $1 AND notes IS NOT NULL "
    with manifest.connect() as connection:
        found = connection.execute(query + "GROUP BY notes ORDER BY n DESC, notes", [KEPT]).fetchall()
    return Noted(sum(times for _, times in found), *found[0]) if found else None
