"""Print the results of `uhr manifest`."""

from __future__ import annotations

from typing import Any

from uhr.base.console import say, shown, table
from uhr.base.formatting import first_words, share
from uhr.manifests.lineage import summary
from uhr.manifests.manifest import Manifest
from uhr.manifests.stats import Stats
from uhr.manifests.verify.verification import VerifyResult


def print_stats(manifest: Manifest, stats: Stats) -> None:
    """Print the statistics as plain tables; empty ones are left out."""
    info, counts = manifest.info, stats.counts
    say(shown(f"{manifest.path}  {summary(info.operation)}"))
    say(shown(f"id {info.id}, made {info.created} by uhr {info.uhr}, source root {info.root}"))
    say()
    states = ", ".join(f"{counts[state]} {state}" for state in ("kept", "rejected", "failed"))
    say(f"{counts['rows']} rows: {states}")
    met = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in info.source.items() if count)
    if met:
        say(f"not opened in the source: {met}")
    _section(("reason", "rows"), counts["reasons"].items())
    rules = [
        (
            rule["name"],
            rule["seen"],
            rule["rejected"],
            rule["left"],
            rule["where"] if rule["state"] == "evaluated" else f"not evaluated: {rule['why']}",
        )
        for rule in stats.rules
    ]
    _section(("rule", "seen", "rejected", "left", "condition"), rules)
    numbers = [
        (n.name, n.unit, share(n.coverage, 1), *n.quantiles.values()) for n in stats.numeric if n.coverage
    ]
    heads = list(stats.numeric[0].quantiles) if stats.numeric else []
    _section(("column", "unit", "filled", *heads), numbers)
    texts = [
        (
            t.name,
            share(t.coverage, 1),
            ", ".join(f"{first_words(value, 40)} {count}" for value, count in t.top.items()),
        )
        for t in stats.text
    ]
    _section(("column", "filled", "values"), texts)
    _section(("aspect", "rows", "kept"), [(a["bucket"], a["rows"], a["kept"]) for a in stats.aspects])


def _section(head: tuple[str, ...], rows: Any) -> None:
    rows = list(rows)
    if rows:
        say()
        table(head, rows)


def print_verify_result(verdict: VerifyResult) -> None:
    """Print all faults and notes, then a summary."""
    if verdict.faults:
        table(
            ("check", "where", "fault", "times"),
            [(f.check, f.where, f.what, f.count) for f in verdict.faults],
        )
        say()
    for note in verdict.notes:
        say(shown(f"note: {note}"))
    state = f"{len(verdict.faults)} faults" if verdict.faults else "sound"
    say(shown(f"{verdict.path}: {state}; {verdict.rows} rows; checked {', '.join(verdict.checks)}"))


def print_lineage(chain: list[dict[str, Any]]) -> None:
    """Print one line per manifest, a parent indented below its child."""
    for link in chain:
        lead = "  " * link["depth"] + (f"{link['role']} " if link["role"] else "")
        if link["found"]:
            what = f"{link['path']}: {link['rows']} rows, {summary(link['operation'])}"
        else:
            what = f"not found any more (was at {link['path']})"
        say(shown(f"{lead}{link['id'][:16]}  {what}"))
