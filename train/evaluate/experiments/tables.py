"""An experiment as tables: its plan and results in the terminal, the results as LaTeX, CSV or Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from uhr.base.console import counted, say, shown, table
from uhr.base.formatting import duration, gibibytes
from uhr.train.evaluate.choice import grouped
from uhr.train.evaluate.compare.tables import escaped, headings, markdown, overlap_rows
from uhr.train.evaluate.experiments.budgets import EXACT, MEASURED
from uhr.train.evaluate.overlap.compare import cells, describe
from uhr.train.evaluate.result import MissingMetric
from uhr.train.evaluate.show import ARROWS, precise

PAGE = "page.html"
"""The page of an experiment, in its folder."""

MARK = "≠"
"""Behind a budget that is not the same for all arms."""

_SHOWN: dict[str, Callable[[Any], str]] = {
    "trainable_parameters": lambda value: f"{value:,}",
    "images_seen": lambda value: f"{value:,}",
    "calls": lambda value: f"{value:g}",
    "training_hours": lambda value: "0" if not value else duration(3600 * value),
    "seconds": duration,
    "memory": gibibytes,
}
"""How the budgets are shown."""


def print_plan(facts: Mapping[str, Any]) -> None:
    """Print what an experiment will do and cost."""
    say(f"{facts['name']}: {facts['protocol']}, {counted(facts['n'], 'image')} per arm and training seed\n")
    _print_budgets(facts["arms"], facts["unequal"])
    say("\neach step is a command of its own:")
    for step in facts["steps"]:
        say(f"  {step['command']}{'   # done' if step['done'] else ''}")


def print_results(facts: Mapping[str, Any], out: Path) -> None:
    """Print values with intervals, the differences from the first arm, and budgets."""
    incomplete = "" if facts["complete"] else " (not all prompts of the protocol)"
    say(f"{facts['protocol']}, {counted(facts['n'], 'image')} each{incomplete}")
    say(f"{facts['level']:.0%} intervals: {facts['method']}\n")
    names = list(facts["arms"])
    rows = [
        [column["name"], ARROWS[column["better"]], *(cell(column["arms"][name]) for name in names)]
        for column in facts["columns"]
    ]
    rows += [[name, "", *values] for name, values in overlap_of(facts)]
    table(("value", "", *names), rows)
    _print_parts(facts)
    _print_differences(facts)
    say()
    _print_budgets({name: arm["budget"] for name, arm in facts["arms"].items()}, facts["unequal"])
    for line in notes(facts):
        say(line)
    say(f"\n{shown(out / PAGE)} has the tables, prompts and images")


def overlap_of(facts: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    return overlap_rows(arm["overlap"] for arm in facts["arms"].values())


def _print_parts(facts: Mapping[str, Any]) -> None:
    if rows := part_rows(facts):
        say("\ntraining seeds and prompts apart, of trained arms")
        table(PARTS, rows)


PARTS = ("value", "arm", "each seed", "sd of seeds", "sd of prompts", "interval over prompts alone")
"""What `part_rows` has."""


def part_rows(facts: Mapping[str, Any]) -> list[list[Any]]:
    """How much of each interval is of prompts, and how much training seeds vary: a row per value and arm."""
    rows: list[list[Any]] = []
    for column in facts["columns"]:
        for name, value in column["arms"].items():
            if value is not None and facts["arms"][name]["seeds"]:
                each = ", ".join(map(precise, value["each"]))
                prompts = _ends(value["prompts"])
                rows.append([column["name"], name, each, value["sd_seeds"], value["sd_prompts"], prompts])
    return rows


def _print_differences(facts: Mapping[str, Any]) -> None:
    names = list(facts["arms"])
    rows = [
        [column["name"], ARROWS[column["better"]], *(_difference(column["arms"][name]) for name in names[1:])]
        for column in facts["columns"]
        if any((column["arms"][name] or {}).get("difference") for name in names[1:])
    ]
    if rows:
        say(f"\ndifferences from {names[0]} over the same prompts; * excludes 0")
        table(("value", "", *names[1:]), rows)


def _print_budgets(budgets: Mapping[str, Mapping[str, Any]], unequal: Mapping[str, Any]) -> None:
    table(("budget", *budgets), budget_rows(budgets, unequal))
    if unequal:
        say(f"{MARK} unequal budgets: the arms differ in {', '.join(unequal)}")


def budget_rows(budgets: Mapping[str, Mapping[str, Any]], unequal: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for key, name in {**EXACT, **MEASURED}.items():
        mark = f" {MARK}" if name in unequal else ""
        values = [budget[key] for budget in budgets.values()]
        rows.append([f"{name}{mark}", *("–" if value is None else _SHOWN[key](value) for value in values)])
    return rows


def _ends(ends: Mapping[str, float | None]) -> str | None:
    return None if ends["low"] is None else f"[{precise(ends['low'])}, {precise(ends['high'])}]"


def cell(value: Mapping[str, Any] | None) -> str | None:
    """`31.2 [30.1, 32.3]`; `1 seed` where the training has no part in the interval."""
    if value is None:
        return None
    one = (" (1 seed)" if value["one_seed"] else "") + _fewer(value["prompt_count"])
    if value["low"] is not None:
        return f"{precise(value['value'])} {_ends(value)}{one}"
    spread = "" if value["spread"] is None else f" ± {precise(value['spread'])}"
    return f"{precise(value['value'])}{spread}{one}"


def _difference(value: Mapping[str, Any] | None) -> str | None:
    if value is None or (found := value.get("difference")) is None:
        return None
    fewer = _fewer(value["difference_prompts"])
    if found["low"] is None:
        return f"{found['value']:+.3g}{fewer}"
    mark = " *" if found["clear"] else ""
    one = (" (1 seed)" if found["one_seed"] else "") + fewer
    return f"{found['value']:+.3g} [{found['low']:+.3g}, {found['high']:+.3g}]{mark}{one}"


def _fewer(prompts: int | None) -> str:
    """` (5 prompts)` where the others have no value."""
    return "" if prompts is None else f" ({counted(prompts, 'prompt')})"


def notes(facts: Mapping[str, Any]) -> list[str]:
    """What limits the numbers, each with the arms for which it is so."""
    found: dict[str, list[str]] = {}
    for name, arm in facts["arms"].items():
        missing = grouped([MissingMetric.model_validate(each) for each in arm["missing"]])
        own = [f"missing: {each}" for each in missing]
        own.append(f"overlap with training: {describe(arm['overlap'])}")
        if len(arm["seeds"]) == 1:
            own.append("one training seed: intervals are over prompts alone")
        for note in own:
            found.setdefault(note, []).append(name)
    devices = {device for arm in facts["arms"].values() for device in arm["devices"]}
    lines = [f"{', '.join(names)}: {note}" for note, names in found.items()]
    if len(devices) > 1:
        lines.append(
            f"images were generated on different devices ({', '.join(sorted(map(shown, devices)))}): "
            "seconds and memory cannot be compared"
        )
    if facts["shared_devices"]:
        lines.append(
            f"several processes shared {', '.join(facts['shared_devices'])}: times are longer than alone"
        )
    return lines


def render(facts: Mapping[str, Any], form: str) -> str:
    """Return the table of values and budgets as "latex", "csv" or "md"."""
    return {"latex": _latex, "csv": _csv, "md": _md}[form](facts)


def _csv(facts: Mapping[str, Any]) -> str:
    """A row per arm and value, and per arm and budget, with every number unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = ("low", "high", "prompts_low", "prompts_high")
    head = ["protocol", "arm", "value", "better", "mean", *ends, "sd_seeds", "sd_prompts", "seeds"]
    overlap = {name: cells(arm["overlap"]) for name, arm in facts["arms"].items()}
    shared = [title.replace(" ", "_") for title in next(iter(overlap.values()))]
    writer.writerow([*head, "difference", "difference_low", "difference_high", *shared])
    for column in facts["columns"]:
        for name, value in column["arms"].items():
            if value is None:
                continue
            prompts, apart = value["prompts"], value.get("difference") or {}
            own = [value["value"], value["low"], value["high"], prompts["low"], prompts["high"]]
            count = len(facts["arms"][name]["seeds"])
            apart_from = [apart.get(key) for key in ("value", "low", "high")]
            row = [facts["protocol"], name, column["name"], column["better"], *own]
            row += [value["sd_seeds"], value["sd_prompts"], count, *apart_from]
            writer.writerow([*row, *overlap[name].values()])
    for key, title in {**EXACT, **MEASURED}.items():
        for name, arm in facts["arms"].items():
            writer.writerow([facts["protocol"], name, title, None, arm["budget"][key], *[None] * 12])
    return out.getvalue()


def _rows(facts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A row per arm: its values, then its budgets."""
    titles = {**EXACT, **MEASURED}
    marks = {key: f" {MARK}" if title in facts["unequal"] else "" for key, title in titles.items()}
    names = headings([(column["name"], column["metric"]) for column in facts["columns"]])
    arrows = [ARROWS[column["better"]] for column in facts["columns"]]
    head = ["arm", *(f"{name} {arrow}".strip() for name, arrow in zip(names, arrows, strict=True))]
    head += [f"{title}{marks[key]}" for key, title in titles.items()]
    overlap = overlap_of(facts)
    head += [name for name, _ in overlap]
    rows = []
    for number, (name, arm) in enumerate(facts["arms"].items()):
        row = [cell(column["arms"][name]) or "–" for column in facts["columns"]]
        budget = arm["budget"]
        row += ["–" if budget[key] is None else _SHOWN[key](budget[key]) for key in titles]
        rows.append([name, *row, *(values[number] for _, values in overlap)])
    return head, rows


def _caption(facts: Mapping[str, Any]) -> str:
    brackets = f"brackets: {facts['level']:.0%} intervals ({facts['method']})"
    return "; ".join([f"Protocol {facts['protocol']}, N = {facts['n']}", brackets, *notes(facts)])


def _md(facts: Mapping[str, Any]) -> str:
    head, rows = _rows(facts)
    return f"{markdown(head, rows)}\n\n{_caption(facts)}\n"


_LATEX = {
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    MARK: r"$\neq$",
    "≥": r"$\geq$",
    "±": r"$\pm$",
    "–": "--",
}


def _latex(facts: Mapping[str, Any]) -> str:
    def text(cell: str) -> str:
        cell = escaped(cell)
        for character, command_ in _LATEX.items():
            cell = cell.replace(character, command_)
        return cell

    head, rows = _rows(facts)
    lines = [r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(text, head)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(text, row)) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {_caption(facts)}"]) + "\n"
