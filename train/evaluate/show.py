"""Prints protocols and results for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uhr.base.console import command, counted, say, shown, table
from uhr.base.formatting import number
from uhr.train.evaluate.choice import grouped
from uhr.train.evaluate.overlap.compare import describe
from uhr.train.evaluate.protocol import FOLDER, LoadedProtocol
from uhr.train.evaluate.result import SCORES, ColumnResult, Result

ARROWS = {"higher": "↑", "lower": "↓", None: ""}


def print_protocol(loaded: LoadedProtocol) -> None:
    """Print everything that is in a protocol."""
    found = loaded.protocol
    say(f"{found.id}: {found.about}")
    for text in found.sources:
        say(f"  source: {text}")
    for text in found.unknown:
        say(f"  not stated: {text}")
    prompts, references = found.prompts, found.references
    seeds = ", ".join(map(str, found.seeds))
    rule = "plus the prompt's index" if found.seed_rule == "index" else "for every prompt"
    file = loaded.prompts_file
    if file is None:
        of = f"--prompts PATH ({prompts.get})"
    else:
        of = "they come with uhr" if file.parent == FOLDER else str(file)
    say()
    say(f"size        {found.size[0]}x{found.size[1]} px")
    say(f"seeds       {seeds} {rule}")
    say(f"images      {'not stated' if found.images is None else f'{found.images:,}'}")
    count = "" if prompts.count is None else f"{prompts.count:,}, "
    say(f"prompts     {count}layout '{prompts.layout}': {of}")
    where = "in the folder of the prompts" if references.in_prompts else references.get
    say(f"references  {references.kind}{f': {where}' if where else ''}")
    say()
    rows = [
        [use.name, ", ".join(f"{k}={v}" for k, v in use.options.items()), use.note] for use in found.metrics
    ]
    table(("metric", "options", "note"), rows)
    for each in found.paper:
        say(f"\nTheir values, not computed here: {each.source}")
        if each.note:
            say(f"  {each.note}")
        rows = [
            [method, *(None if value is None else f"{value:.10g}" for value in values)]
            for method, values in each.rows.items()
        ]
        table(("method", *each.columns), rows)


def with_interval(column: ColumnResult, images: int | None = None) -> str:
    """`31.2 [30.8, 31.6]`, and for some metrics of sets also their spread: `± 0.2 (subsets)`.

    images: how many were scored; `(n = 5)` is added where the value is of fewer.
    """
    text = precise(column.value)
    if column.low is not None and column.high is not None:
        text += f" [{precise(column.low)}, {precise(column.high)}]"
    if column.spread is not None:
        text += f" ± {precise(column.spread)} ({column.spread_of})"
    if images is not None and column.n < images:
        text += f" (n = {column.n:,})"
    return text


def precise(value: float | None) -> str:
    """Four significant digits, or two decimals from 100 on."""
    if value is None:
        return number(None)
    return f"{value:.2f}" if abs(value) >= 100 else f"{value:.4g}"


def print_result(found: Result) -> None:
    """Print the values of a result with their intervals, and what is missing."""
    info = found.info
    incomplete = "" if info.protocol.complete else " (not all prompts of the protocol)"
    say(f"{info.protocol.id}, {counted(info.n, 'image')}{incomplete}")
    rows = [
        [name, ARROWS[column.better], with_interval(column), column.n, shown(metric.name)]
        for name, (metric, column) in info.columns().items()
    ]
    table(("value", "", f"value, {info.level:.0%} interval and spread", "n", "metric"), rows)
    for each in grouped(info.missing):
        say(f"missing: {each}")
    if info.references is not None:
        say(f"references: {counted(info.references.count, 'image')} of {shown(info.references.place)}")
    if info.overlap is not None:
        say(f"overlap with training: {describe(info.overlap)}")
    say(f"\n{shown(found.folder / SCORES)} has a row per image")
    say(f"next: {command('eval', 'compare', found.folder, 'OTHER', '--out', 'page.html')}")


def print_checkpoints(facts: Mapping[str, Any], out: Path) -> None:
    """Print the values of the checkpoints of a run, a line per step."""
    say(f"{facts['protocol']}, {counted(facts['n'], 'image')} for each checkpoint of {shown(facts['run'])}")
    names = list(facts["steps"][0]["values"])
    rows = []
    for each in facts["steps"]:
        values = [{k: v for k, v in each["values"][name].items() if k != "metric"} for name in names]
        cells = [
            with_interval(ColumnResult(name=name, **value), facts["n"])
            for name, value in zip(names, values, strict=True)
        ]
        rows.append([each["step"], *cells])
    table(("step", *names), rows)
    say(f"\n{shown(out / 'checkpoints.html')} draws them against steps")


def print_metrics(rows: list[dict[str, Any]], whole: bool) -> None:
    """Print what metrics measure and need; with `whole` also their options, weights, licence and source."""
    if not whole:
        head = ("name", "kind", "needs", "weights", "measures")
        table(head, [[_listed(row[name]) for name in head] for row in rows])
        say("\n`uhr eval metrics NAME` says where its weights are published")
        return
    for row in rows:
        say(f"{row['name']}: {row['measures']}")
        say(f"  of each {row['kind']}; needs {_listed(row['needs']) or 'the image alone'}; {row['source']}")
        say(f"  licence: {row['licence']}")
        for option, default in row["options"].items():
            where = {**row["weights"], **row["optional"]}.get(option)
            say(f"  {option}{f': {where}' if where else f' = {default}'}")


def _listed(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list | dict) else value
