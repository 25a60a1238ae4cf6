"""Print the results of `uhr curate`."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uhr.base.console import command, quoted, say, shown, table, warn
from uhr.base.formatting import first_words, human_bytes
from uhr.curate.faults import UNAVAILABLE
from uhr.curate.planning.catalogue import weights_of
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.planning.planned import Pass, PlannedStage
from uhr.curate.rules import Rule
from uhr.curate.run.failures import Failures, NoteSummary
from uhr.curate.run.job import CurationResult
from uhr.curate.stage import Resources
from uhr.manifests.info import ManifestInfo
from uhr.manifests.selection.tombstones import FORGOTTEN
from uhr.manifests.sources.base import NOT_OPENED, Listing

MOST_WARNINGS = 5
LONGEST_ERROR = 160
"""Characters of an error or note that are printed."""


def print_plan(plan: CurationPlan, listing: Listing) -> None:
    """Print the plan of a dry run: the stages and rules for each image, in order."""
    config = plan.config
    say(f"{config.name}: {config.description}" if config.description else config.name)
    size = plan.unit_size(listing.items.num_rows)
    units = -(-listing.items.num_rows // size)
    say(f"source  {shown(listing.source.place)}: {listing.describe()}, in {units:,} units of {size}")
    if not_opened := _not_opened(listing.not_opened):
        say(f"        {not_opened}")
    say()
    for number, this in enumerate(plan.passes, 1):
        if len(plan.passes) > 1:
            rows = "patches" if this.of_patches else "images"
            what = f"the {rows} that are still kept" if number > 1 and this.expand is None else "every file"
            if this.expand is not None:
                what = "patches of the images that are still kept"
            say(f"pass {number} of {len(plan.passes)}, over {what}")
        _print_pass(this, "before anything is read" if number == 1 else "before the stages")
    for skipped in plan.skipped:
        say(shown(f"skipped  {skipped.label}: {skipped}"))
    for idle in plan.idle:
        say(shown(f"not evaluated  rule {idle.name} ({idle.where})"))


def print_estimate(found: Mapping[str, Any]) -> None:
    """Print what a run will take, as `estimate` measured it."""
    say(f"\nestimated from {found['measured']:,} of {found['of']:,} files, which were measured:")
    for stage in found["stages"]:
        each = stage["seconds_each"]
        took = "not reached" if each is None else f"{each * 1e3:,.1f} ms each, {_duration(stage['seconds'])}"
        if stage["reused"]:
            took = f"{'' if each is None else took + ', '}{stage['reused']:,} reused"
        say(shown(f"  {stage['stage']:<18} {stage['rows']:>12,} rows   {took}"))
    for rule in found["rules"]:
        say(shown(f"  rule {rule['rule']}: rejected {rule['rejected']:,} of {rule['seen']:,}"))
    for column, text in found["tokens"].items():
        about = "" if text["counted"] else "about "
        say(shown(f"  {column}: {text['texts']:,} texts, {about}{text['tokens']:,} tokens"))
    sizes = found["bytes"]
    say(
        f"  read {human_bytes(sizes['read'])}, written {human_bytes(sizes['previews'])} of previews and "
        f"{human_bytes(sizes['stored'])} of stored images"
    )
    seconds = [each["seconds"] for each in found["passes"]]
    passes = "" if len(seconds) == 1 else f" ({', '.join(_duration(each) for each in seconds)} by pass)"
    say(f"  time with these workers, without their start: {_duration(sum(seconds))}{passes}")


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def _print_pass(this: Pass, before: str) -> None:
    if this.expand is not None:
        say("cut from the pixels:")
        _print_stage(this.expand)
    _print_rules(this.first, before)
    pixels = "from the pixels, decoded once"
    for text, stages in (("from the first bytes", this.header), (pixels, this.pixel)):
        _print_stages(text, stages)
    for segment in this.segments:
        _print_stages(f"by a model ({_resources(segment.resources)})", segment.stages)
        for view in segment.views.values():
            say(f"    view: {view.describe()}")
        for weights in (found for planned in segment.stages for found in weights_of(planned)):
            say(shown(f"    weights {weights['from']}: present, SHA-256 {weights['sha256'][:16]}"))
    _print_stages("over the whole set", this.sets)


def _print_stages(text: str, stages: Sequence[PlannedStage[Any]]) -> None:
    if stages:
        say(f"{text}:")
    for planned in stages:
        _print_stage(planned)


def _resources(resources: Resources) -> str:
    gpus = "a GPU if there is one" if resources.num_gpus is None else f"{resources.num_gpus:g} GPUs"
    least, most = resources.actors
    workers = f"{least} to {most} workers" if most > least else "1 worker" if most == 1 else f"{most} workers"
    kind = f" of type {resources.accelerator_type}" if resources.accelerator_type else ""
    return f"{workers}, each {resources.num_cpus:g} CPUs and {gpus}{kind}; batches of {resources.batch_size}"


def _print_stage(planned: PlannedStage[Any]) -> None:
    say(f"  {planned.label:<18} {', '.join(column.name for column in planned.stage.adds)}")
    for rule in planned.rules:
        say(shown(f"    keep where {rule.condition.text}   [{_rule_name(rule)}]"))


def _print_rules(rules: Iterable[Rule], text: str) -> None:
    for rule in rules:
        say(shown(f"{text}: keep where {rule.condition.text}   [{_rule_name(rule)}]"))


def _rule_name(rule: Rule) -> str:
    channel = "" if rule.channel is None else f", channel {rule.channel}"
    return rule.name + channel + ("" if rule.null == "fail" else f", null: {rule.null}")


def print_result(result: CurationResult) -> None:
    """Print the summary of a run."""
    info, path = result.manifest.info, result.manifest.name
    counts = info.counts
    if result.finished_before:
        say(f"{shown(path)} is already finished, with the same pipeline and files; nothing was done")
    kept, rejected, failed = (f"{counts[name]:,} {name}" for name in ("kept", "rejected", "failed"))
    took = "" if result.finished_before else f"   in {result.seconds:.1f} s"
    say(f"{counts['rows']:,} files: {kept}, {rejected}, {failed}{took}")
    if reused := info.operation.get("reused"):
        say(shown(f"  reused    {', '.join(f'{label} {rows:,}' for label, rows in reused.items())}"))
    _print_funnel(info, result.failures)
    if result.noted is not None:
        _print_notes("notes on", result.noted, counts["kept"])
    for column, why in result.unanswered.items():
        _print_notes(f"no {column} for", why, counts["kept"])
    if not_opened := _not_opened(info.source):
        say(f"  {not_opened}")
    for folder in result.unreadable[:MOST_WARNINGS]:
        warn(f"folder {folder} could not be read")
    if len(result.unreadable) > MOST_WARNINGS:
        warn(f"... and {len(result.unreadable) - MOST_WARNINGS:,} more")
    for rule in result.failures.always:
        warn(f"rule {rule} failed every row that reached it: see the error above; fix the rule or its stage")
    if info.source.get("broken_sidecars"):
        what = f"{info.source['broken_sidecars']:,} with a broken sidecar: see source_meta"
        if (fault := result.sidecars.fault) is not None:
            what += shown(f" ({first_words(fault[0], LONGEST_ERROR)})")
        warn(what)
    if (key := result.sidecars.key) is not None:
        text = f"no image has a caption, and {key[1]:,} have a text under '{key[0]}' in source_meta"
        warn(shown(f"{text}: if that is the caption, --set sidecars.caption=[{key[0]}]"))
    say(f"manifest  {shown(path)}   id {info.id[:16]}")
    say(f"report    {shown(result.report)}")
    if info.counts["reasons"].get(UNAVAILABLE):
        again = f"the same command with --out NEW --reuse {quoted(path)}"
        say(f"again     {again}: measures unavailable rows again")
    say(f"why       {command('curate', 'explain', path, 'URI')}")
    say(f"next      {command('manifest', 'slice', path, '--where', 'SQL', '--out', 'SLICE')}")


def _print_funnel(info: ManifestInfo, failures: Failures) -> None:
    rejecting = {rule.name for rule in info.rules}
    for rule in info.rules:
        if rule.state == "evaluated":
            say(shown(f"  rejected  {rule.rejected:>8,} of {rule.seen:,}   {rule.label}: {rule.where}"))
    for kind, count in info.counts["reasons"].items():
        if kind not in rejecting:
            say(f"  failed    {count:>8,}   {shown(kind)}")
            for text, times in failures.commonest.get(kind, ()):
                of = "" if times == count else f"{times:,} of them: "
                say(f"                       {of}{shown(first_words(text, LONGEST_ERROR))}")
    for rule in info.rules:
        if rule.state == "not evaluated":
            say(shown(f"  not evaluated       {rule.name}: {rule.where}   ({rule.why})"))


def _print_notes(what: str, found: NoteSummary, kept: int) -> None:
    of = "" if found.times == found.rows else f"{found.times:,} of them: "
    note = shown(first_words(found.note, LONGEST_ERROR))
    say(f"  {shown(what)}  {found.rows:>{max(0, 16 - len(what))},} of {kept:,} kept   {of}{note}")


def _not_opened(not_opened: Mapping[str, int]) -> str:
    """Return one line about what the listing found and did not open; empty if there was nothing."""
    text = {
        "linked_folders": "links to folders",
        "unreadable_folders": "unreadable folders",
        "links_and_devices_in_archives": "links and devices in archives",
        "other_members": "members of other kinds",
        "unmatched_rows": "rows of tables without a file",
        "replaced_rows": "rows of tables before a later one for the same file",
        FORGOTTEN: "forgotten from a reused manifest",
    }
    names = dict.fromkeys((*NOT_OPENED, *text))
    found = [f"{text.get(name, name)} {not_opened[name]:,}" for name in names if not_opened.get(name)]
    return f"not opened: {', '.join(found)}" if found else ""


def print_status(status: Mapping[str, Any]) -> None:
    say(f"{shown(status['out'])}: {status['state']}")
    if status["rows"] is None:
        return
    units = f" ({status['units_done']:,} of {status['units']:,} units)" if "units" in status else ""
    if "pass" in status:
        tasks = ", ".join(f"{done:,}" for done in status["tasks_done"])
        say(f"pass {status['pass']}, tasks done of each segment: {tasks} of {status['units']:,}")
    say(f"{status['rows_done']:,} of {status['rows']:,} files{units}")
    say(", ".join(f"{name} {status[name]:,}" for name in ("kept", "rejected", "failed")))
    if "undone" in status:
        say(f"left undone, as a host or stage is paused: {status['undone']:,}")
    for reason, count in status.get("reasons", {}).items():
        failed = "   failed" if reason in status.get("faults", {}) else ""
        say(f"  {count:>8,}   {shown(reason)}{failed}")
    for number, segment in enumerate(status.get("segments", [])):
        if segment["rows_per_minute"] is not None:
            name = f"segment {number + 1}: " if len(status["segments"]) > 1 else ""
            left = segment["seconds_left"]
            text = "" if left is None else f", {datetime.timedelta(seconds=left)} left"
            say(f"{name}{segment['rows_per_minute']:,.0f} images a minute{text}")
    if "holder" in status:
        say(f"held by {shown(status['holder'])} until {status['until']}")
    if status["state"] == "stopped":
        say("the same command resumes the run")


def print_explanation(explanation: Mapping[str, Any]) -> None:
    say(f"{shown(explanation['uri'])}   {explanation['sample_id']}")
    if explanation["path"] is not None:
        say(shown(explanation["path"]))
    verdict = (
        explanation["status"]
        if explanation["reason"] is None
        else f"{explanation['status']}: {explanation['reason']}"
    )
    say(shown(verdict if explanation["error"] is None else f"{verdict}: {explanation['error']}"))
    stage = None
    for column in explanation["columns"]:
        if column["stage"] != stage:
            stage = column["stage"]
            say()
            say(shown(stage))
        unit = "" if column["unit"] in ("", "1") else f" {column['unit']}"
        say(shown(f"  {column['column']:<18} {_value(column['value'])}{unit}"))
    say("\nrules, in the order in which they are evaluated")
    for rule in explanation["rules"]:
        values = ", ".join(f"{name} = {_value(value)}" for name, value in rule["values"].items())
        tail = f"   [{values}]" if values else f"   ({rule['why']})" if rule["why"] else ""
        say(shown(f"  {rule['outcome']:<14} {rule['rule']}: {rule['where']}{tail}"))


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def print_stages(stages: list[dict[str, Any]]) -> None:
    """Print the stages as a table, which fits on the terminal."""

    def models(stage: Mapping[str, Any]) -> str:
        found = [
            f"{each['package']} ({each['licence']}){'' if each['installed'] else ', not installed'}"
            for each in stage["packages"]
        ]
        if stage["set"]:
            found.append(f"set {' or '.join(stage['set'])}")
        elif stage["missing"] is not None and all(each["installed"] for each in stage["packages"]):
            found.append("without its weights")
        return "; ".join(found)

    rows = [
        [
            stage["stage"],
            stage["reads"],
            ", ".join(column["column"] for column in stage["adds"]),
            ", ".join(stage["needs"]),
            models(stage),
        ]
        for stage in stages
    ]
    table(["stage", "reads", "adds", "needs", "packages and models"], rows, fit=True)
