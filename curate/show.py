"""What `uhr curate` says to people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from uhr.base.console import command, say, shown, table, warn
from uhr.base.numbers import first_words
from uhr.curate.failures import Failures
from uhr.curate.planning.plan import Plan, Step
from uhr.curate.rules import Rule
from uhr.curate.run import Outcome
from uhr.curate.sources import NOT_OPENED, Listing, describe
from uhr.manifests.manifest import ManifestInfo

MOST_WARNINGS = 5
LONGEST_WORDS = 160
"""Of one error, in characters."""


def print_plan(plan: Plan, listing: Listing) -> None:
    """The dry run: what would happen to each image, in order."""
    config = plan.config
    say(f"{config.name}: {config.description}" if config.description else config.name)
    size = plan.unit_size(listing.items.num_rows)
    units = -(-listing.items.num_rows // size)
    say(f"source  {shown(listing.root)}: {describe(listing)}, in {units:,} units of {size}")
    if not_opened := _not_opened(listing.met):
        say(f"        {not_opened}")
    say()
    _print_rules(plan.first, "before anything is read")
    for words, steps in (
        ("from the first bytes", plan.header),
        ("from the pixels, decoded once", plan.pixel),
        ("over the whole set", plan.sets),
    ):
        if steps:
            say(f"{words}:")
        for step in steps:
            _print_step(step)
    for skipped in plan.skipped:
        say(shown(f"skipped  {skipped.label}: {skipped.why}"))
    for idle in plan.idle:
        say(shown(f"not evaluated  rule {idle.name} ({idle.where})"))


def _print_step(step: Step[Any]) -> None:
    say(f"  {step.label:<18} {', '.join(column.name for column in step.stage.adds)}")
    for rule in step.rules:
        say(shown(f"    keep where {rule.condition.text}   [{rule.name}]"))


def _print_rules(rules: Iterable[Rule], words: str) -> None:
    for rule in rules:
        say(shown(f"{words}: keep where {rule.condition.text}   [{rule.name}]"))


def print_outcome(outcome: Outcome) -> None:
    """The end of a run."""
    info, path = outcome.manifest.info, outcome.manifest.path
    counts = info.counts
    if outcome.finished_before:
        say(f"{shown(path)} is finished already, with the same pipeline and the same files; nothing was done")
    kept, rejected, failed = (f"{counts[name]:,} {name}" for name in ("kept", "rejected", "failed"))
    took = "" if outcome.finished_before else f"   in {outcome.seconds:.1f} s"
    say(f"{counts['rows']:,} files: {kept}, {rejected}, {failed}{took}")
    _print_funnel(info, outcome.failures)
    if (noted := outcome.noted) is not None:
        of = "" if noted.times == noted.rows else f"{noted.times:,} times "
        note = shown(first_words(noted.note, LONGEST_WORDS))
        say(f"  notes on  {noted.rows:>8,} of {counts['kept']:,} kept   {of}{note}")
    if not_opened := _not_opened(info.source):
        say(f"  {not_opened}")
    for folder in outcome.unreadable[:MOST_WARNINGS]:
        warn(f"folder {folder} could not be read")
    if len(outcome.unreadable) > MOST_WARNINGS:
        warn(f"... and {len(outcome.unreadable) - MOST_WARNINGS:,} more")
    for rule in outcome.failures.always:
        warn(f"rule {rule} failed every row that it saw: see the error above, and mend the rule or its stage")
    if info.source.get("broken_sidecars"):
        warn(f"{info.source['broken_sidecars']:,} with a broken sidecar: see source_meta")
    say(f"manifest  {shown(path)}   id {info.id[:16]}")
    say(f"report    {shown(outcome.report)}")
    say(f"why       {command('curate', 'explain', path, 'URI')}")
    say(f"next      {command('manifest', 'slice', path, '--where', 'SQL', '--out', 'SLICE')}")


def _print_funnel(info: ManifestInfo, failures: Failures) -> None:
    rejecting = {rule.name for rule in info.rules}
    for rule in info.rules:
        if rule.state == "evaluated":
            say(shown(f"  rejected  {rule.rejected:>8,} of {rule.seen:,}   {rule.name}: {rule.where}"))
    for kind, count in info.counts["reasons"].items():
        if kind not in rejecting:
            say(f"  failed    {count:>8,}   {shown(kind)}")
            for words, times in failures.commonest.get(kind, ()):
                of = "" if times == count else f"{times:,} times "
                say(f"                       {of}{shown(first_words(words, LONGEST_WORDS))}")
    for rule in info.rules:
        if rule.state == "not evaluated":
            say(shown(f"  not evaluated       {rule.name}: {rule.where}   ({rule.why})"))


def _not_opened(met: Mapping[str, int]) -> str:
    """What the listing met and left alone, in one line; empty if nothing."""
    words = {"linked_folders": "links to folders", "unreadable_folders": "unreadable folders"}
    found = [f"{words.get(name, name)} {met[name]:,}" for name in NOT_OPENED if met.get(name)]
    return f"not opened: {', '.join(found)}" if found else ""


def print_status(status: Mapping[str, Any]) -> None:
    say(f"{shown(status['out'])}: {status['state']}")
    if status["rows"] is None:
        return
    units = f" ({status['units_done']:,} of {status['units']:,} units)" if "units" in status else ""
    say(f"{status['rows_done']:,} of {status['rows']:,} files{units}")
    say(", ".join(f"{name} {status[name]:,}" for name in ("kept", "rejected", "failed")))
    for reason, count in status.get("reasons", {}).items():
        say(f"  {count:>8,}   {shown(reason)}")
    if status["state"] == "stopped":
        say("the same command goes on where it stopped")


def print_explanation(told: Mapping[str, Any]) -> None:
    say(f"{shown(told['uri'])}   {told['sample_id']}")
    if told["path"] is not None:
        say(shown(told["path"]))
    verdict = told["status"] if told["reason"] is None else f"{told['status']}: {told['reason']}"
    say(shown(verdict if told["error"] is None else f"{verdict}: {told['error']}"))
    stage = None
    for column in told["columns"]:
        if column["stage"] != stage:
            stage = column["stage"]
            say()
            say(shown(stage))
        unit = "" if column["unit"] in ("", "1") else f" {column['unit']}"
        say(shown(f"  {column['column']:<18} {_value(column['value'])}{unit}"))
    say("\nrules, in the order in which they are asked")
    for rule in told["rules"]:
        looked = ", ".join(f"{name} = {_value(value)}" for name, value in rule["values"].items())
        tail = f"   [{looked}]" if looked else f"   ({rule['why']})" if rule["why"] else ""
        say(shown(f"  {rule['outcome']:<14} {rule['rule']}: {rule['where']}{tail}"))


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def print_stages(stages: list[dict[str, Any]]) -> None:
    rows = [
        [
            stage["stage"],
            stage["reads"],
            ", ".join(column["column"] for column in stage["adds"]),
            ", ".join(stage["needs"]),
            ", ".join(f"{p['package']} ({p['licence']})" for p in stage["packages"])
            + (" missing" if stage["missing"] else ""),
        ]
        for stage in stages
    ]
    table(["stage", "reads", "adds", "needs", "packages"], rows)
