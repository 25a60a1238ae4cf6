"""Print the results of `uhr manifest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uhr.base.console import counted, say, shown, table, warn
from uhr.base.formatting import first_words, share
from uhr.manifests.lineage import summary, why_absent

if TYPE_CHECKING:
    from uhr.manifests.compare.diff import Diff
    from uhr.manifests.compare.history import Step
    from uhr.manifests.export.job import ExportResult
    from uhr.manifests.forget.job import Forgotten
    from uhr.manifests.manifest import Manifest
    from uhr.manifests.stats import Stats
    from uhr.manifests.verify.verification import VerifyResult

_MOST_FAULTS = 5
"""Images that could not be exported, and are named on the terminal."""


def print_stats(manifest: Manifest, stats: Stats) -> None:
    """Print the statistics as plain tables; empty ones are left out."""
    info, counts = manifest.info, stats.counts
    say(shown(f"{manifest.name}  {summary(info.operation)}"))
    say(shown(f"id {info.id}, made {info.created} by uhr {info.uhr}, source root {info.root}"))
    if manifest.parent is not None:
        own = ", ".join(field.name for field in manifest.own_fields) or "none"
        say(shown(f"by reference to {manifest.parent.name}; columns of its own: {own}"))
    say()
    states = ", ".join(f"{counts[state]} {state}" for state in ("kept", "rejected", "failed"))
    say(f"{counts['rows']} rows: {states}")
    met = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in info.source.items() if count)
    if met:
        say(f"not opened in the source: {met}")
    _section(("reason", "rows"), counts["reasons"].items())
    rules = [
        (
            rule["label"],
            rule["seen"],
            rule["rejected"],
            rule["left"],
            rule["where"] if rule["state"] == "evaluated" else f"not evaluated: {rule['why']}",
        )
        for rule in stats.rules
    ]
    if rules and info.operation.get("kind") != "curate":
        say("\nrules and counts of the whole run that the rows come from")
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
    state = counted(len(verdict.faults), "fault") if verdict.faults else "sound"
    say(shown(f"{verdict.path}: {state}; {verdict.rows} rows; checked {', '.join(verdict.checks)}"))


def print_lineage(chain: list[dict[str, Any]]) -> None:
    """Print the manifests, a parent indented below its child, each with what its parent does not have too."""
    for number, link in enumerate(chain):
        indent = "  " * link["depth"]
        lead = indent + (f"{link['role']} " if link["role"] else "")
        if not link["found"]:
            say(shown(f"{lead}{link['id'][:16]}  {why_absent(link)} (was at {link['path']})"))
            continue
        what = f"{link['path']}: {counted(link['rows'], 'row')}, {summary(link['operation'])}"
        say(shown(f"{lead}{link['id'][:16]}  {what}"))
        parent = chain[number + 1] if number + 1 < len(chain) else {}
        parent = parent if parent.get("depth") == link["depth"] + 1 else {}
        for name, text in _configuration(link).items():
            if text and text != _configuration(parent).get(name):
                say(shown(f"{indent}    {name}: {text}"))


def _configuration(link: Mapping[str, Any]) -> dict[str, str]:
    """Return what a link of a lineage has, as texts by name; empty where it has none."""
    if not link.get("found"):
        return {}
    source = link["source"]
    if not isinstance(source, str):
        source = " ".join(str(source[key]) for key in ("kind", "path") if key in source)
    stages = [
        f"{s['name']} {s['version']}" if s["state"] == "ran" else f"{s['name']} skipped"
        for s in link["stages"]
    ]
    rules = [f"{r['name']} ({r['where']})" for r in link["rules"] if r["state"] == "evaluated"]
    hashes = link["weights"] | link["files"]
    licences = [f"{each['license'] or 'none stated'} {each['rows']:,}" for each in link.get("licences", ())]
    return {
        "source": source,
        "stages": ", ".join(stages),
        "rules": ", ".join(rules),
        "weights and files": ", ".join(f"{name} {hash_[:16]}" for name, hash_ in hashes.items()),
        "versions": ", ".join([f"uhr {link['uhr']}", *(f"{n} {v}" for n, v in link["versions"].items())]),
        "made": link["created"],
        "licences": ", ".join(licences),
    }


def print_export(result: ExportResult) -> None:
    """Print what was written, and what could not be."""
    for fault in result.failed[:_MOST_FAULTS]:
        warn(shown(f"{fault['uri']} was left out: {fault['kind']}: {fault['error']}"))
    if result.failed:
        more = f"; all are listed in {result.path}/export.json" if len(result.failed) > _MOST_FAULTS else ""
        warn(shown(f"{len(result.failed):,} images could not be exported{more}"))
    verb = "is already finished:" if result.finished_before else "contains"
    images = ", ".join(f"{name} {counted(count, 'image')}" for name, count in result.images.items())
    shards = counted(result.shards, "shard")
    say(shown(f"{result.path} {verb} {images or 'no images'}; {result.format}, {shards}"))


def print_history(steps: Sequence[Step]) -> None:
    """Print one paragraph per manifest, oldest first, and per run of training."""
    for step in steps:
        if step.checkpoints:
            say(shown(f"{step.path}  {step.operation}"))
            say(shown(f"  trained on a manifest with it: {', '.join(step.checkpoints)}"))
            continue
        say(shown(f"{step.path}  {step.operation}" + (f"  id {step.id[:16]}" if step.id else "")))
        if not step.present:
            if step.found:
                say("  has no row of the sample")
            continue
        verdict = [step.status or "?", *(part for part in (step.reason, step.error) if part)]
        say(shown("  " + ": ".join(verdict) + (f" ({step.rule})" if step.rule else "")))
        for name, value in step.columns.items():
            say(shown(f"  {name}: {_value(value)}"))
        for name, (old, new) in step.changed.items():
            say(shown(f"  {name}: {_value(old)} -> {_value(new)}"))


def print_diff(found: Diff) -> None:
    """Print the differences as plain tables; empty ones are left out."""
    rows = found.rows
    say(shown(f"A {found.a}"))
    say(shown(f"B {found.b}"))
    say(
        f"{rows['both']:,} samples in both, {rows['changed']:,} of them changed; "
        f"{rows['only_a']:,} only in A, {rows['only_b']:,} only in B"
    )
    for side, uris in (("A", found.only_a), ("B", found.only_b)):
        more = ", ..." if len(uris) < rows[f"only_{side.lower()}"] else ""
        if uris:
            say(shown(f"only in {side}: {', '.join(uris)}{more}"))
    _section(("column", "changed rows"), found.columns.items())
    columns = [(name, "only in B") for name in found.added] + [(name, "only in A") for name in found.removed]
    columns += [(name, f"{before} -> {after}") for name, (before, after) in found.retyped.items()]
    _section(("column", "difference"), columns)
    _section(("rule", "difference"), found.rules.items())
    _section(("stage", "difference"), found.stages.items())
    for move in found.moves:
        say()
        before, after = (": ".join(part for part in side if part) for side in (move.before, move.after))
        say(shown(f"{before} -> {after}: {counted(move.rows, 'sample')}"))
        for cause, count in move.why.items():
            say(shown(f"  {count:,} x {cause}"))
        for example in move.examples:
            values = [
                f"{name} {_value(pair['a'])} -> {_value(pair['b'])}"
                for name, pair in example.items()
                if name != "uri"
            ]
            say(shown(f"  {example['uri']}  {', '.join(values)}"))
    if found.same:
        say("no difference")


def print_forgotten(done: Forgotten) -> None:
    """Print what was taken out of each manifest and export, and which checkpoints had seen it."""
    verb = "would be" if done.dry_run else "was" if done.samples == 1 else "were"
    say(f"{counted(done.samples, 'sample')}, with crops and near-duplicates, {verb} taken out")
    rows = [(change.path, change.rows, change.previews, change.pixels) for change in done.manifests]
    table(("manifest", "rows", "previews", "stored images"), rows)
    _section(("export", "files"), done.exports.items())
    for path in done.reports:
        say(shown(f"report {'to be written' if done.dry_run else 'written'} again: {path}"))
    for path in done.checkpoints:
        say(shown(f"trained on a manifest that had them, and not changed: {path}"))
    for path in done.unread_checkpoints:
        say(shown(f"its record could not be read, so it may have seen them: {path}"))
    for path in done.caches:
        say(shown(f"cache {'to be removed' if done.dry_run else 'removed'}: {path}"))
    for path in done.other_caches:
        say(shown(f"another cache on this machine, not changed: {path}"))
    say("caches on other machines are not reached: remove uhr/manifests from ~/.cache there")
    for left in done.remaining:
        rows = f"{counted(left.rows, 'other row')} of the same {left.option}"
        say(
            shown(
                f"{rows} in {left.path} {'is' if left.rows == 1 else 'are'} left; to forget: {left.command}"
            )
        )


def _value(value: Any) -> str:
    return (
        "null" if value is None else first_words(f"{value:g}" if isinstance(value, float) else str(value), 60)
    )
