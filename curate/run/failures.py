"""The most frequent errors of a finished run, and the most frequent decoder note of its kept images."""

from __future__ import annotations

import json
from collections import Counter
from typing import NamedTuple

from uhr.curate.faults import NO_VALUE, RULE_ERROR
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import FAILED, KEPT


class Failures(NamedTuple):
    """`commonest` has the most frequent error of each kind of fault, and the number of rows with it, as a
    list of one pair; kinds whose rows have no message are left out. `always` names the rules that failed
    every row that they were evaluated on.
    """

    commonest: dict[str, list[tuple[str, int]]]
    always: list[str]


def failures_of(manifest: Manifest) -> Failures:
    """Count the errors in the rows of `manifest`."""
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
                # the prefix that rules.Judge writes; the value after it may differ from row to row
                by_rule[name] += count if error.startswith(f"rule '{name}' (") else 0
    seen = {rule.name: rule.seen for rule in manifest.info.rules}
    return Failures(commonest, [name for name, n in by_rule.items() if n and n == seen[name]])


class SidecarSummary(NamedTuple):
    """What the sidecars of a run had.

    fault: the most frequent fault, and the number of rows with it; None if all are valid. key: where no row
    has a caption, the key of `source_meta` under which most rows have a text; None if there is no such key.
    """

    fault: tuple[str, int] | None
    key: tuple[str, int] | None


LOOKED_AT = 1000
"""Rows with other metadata that are searched for a caption."""


def sidecars_of(manifest: Manifest) -> SidecarSummary:
    """Summarize what the sidecars of the images had."""
    fault = "json_extract_string(source_meta, '$.sidecar_fault')"
    with manifest.connect() as connection:
        faults = connection.execute(
            f"SELECT {fault} AS fault, count(*) AS n FROM samples "
            "WHERE contains(source_meta, 'sidecar_fault') AND fault IS NOT NULL "
            "GROUP BY fault ORDER BY n DESC, fault LIMIT 1"
        ).fetchone()
        captions = connection.execute("SELECT count(caption) FROM samples").fetchone()
        rows = []
        if captions == (0,):
            query = "SELECT source_meta FROM samples WHERE source_meta IS NOT NULL LIMIT $1"
            rows = connection.execute(query, [LOOKED_AT]).fetchall()
    texts: Counter[str] = Counter()
    for (meta,) in rows:
        for key, value in json.loads(meta).items():
            # a name, a date or an address has no spaces, and a caption has
            if isinstance(value, str) and " " in value.strip() and key != "sidecar_fault":
                texts[key] += 1
    key = max(texts.items(), key=lambda entry: (entry[1], entry[0])) if texts else None
    return SidecarSummary(faults, key)


class NoteSummary(NamedTuple):
    """How many kept images have a note, the most frequent note, and how many images have it."""

    rows: int
    note: str
    times: int


def notes_of(manifest: Manifest, column: str = "notes") -> NoteSummary | None:
    """Summarize the texts of a column, by default the decoder notes; None if no kept row has one, or there is
    no such column.
    """
    if column not in manifest.schema.names:
        return None
    # by place: the manifest may have columns by any name that is given here
    query = f'SELECT "{column}", count(*) FROM samples WHERE status = $1 AND "{column}" IS NOT NULL '
    with manifest.connect() as connection:
        found = connection.execute(query + "GROUP BY 1 ORDER BY 2 DESC, 1", [KEPT]).fetchall()
    return NoteSummary(sum(times for _, times in found), *found[0]) if found else None


def unanswered_of(manifest: Manifest) -> dict[str, NoteSummary]:
    """Summarize why kept rows have no caption or translation, by column: those with another of the same stage
    that says why, as `caption_en` and `caption_en_error`.
    """
    columns = [name for stage in manifest.info.stages for name in stage.adds if f"{name}_error" in stage.adds]
    found = {name: notes_of(manifest, f"{name}_error") for name in columns}
    return {name: summary for name, summary in found.items() if summary is not None}
