"""A comparison as a table: in the terminal, and as LaTeX, CSV or Markdown for papers."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from uhr.base.console import counted, say, table
from uhr.base.errors import UserError, unknown
from uhr.train.evaluate.bootstrap import LEAST_PROMPTS
from uhr.train.evaluate.choice import grouped
from uhr.train.evaluate.compare.comparison import ComparedColumn, Comparison
from uhr.train.evaluate.overlap import describe
from uhr.train.evaluate.result import ColumnResult
from uhr.train.evaluate.show import ARROWS, precise, with_interval


def print_comparison(found: Comparison) -> None:
    """Print values with intervals, then paired differences from the first arm."""
    info = found.arms[0].info
    incomplete = "" if info.protocol.complete else " (not all prompts of the protocol)"
    say(f"{info.protocol.id}, {counted(info.n, 'image')} each{incomplete}\n")
    rows = [
        [column.name, ARROWS[column.better], *(_cell(value) for value in column.values)]
        for column in found.columns
    ]
    table(("value", "", *(arm.name for arm in found.arms)), rows)
    paired = [
        [column.name, ARROWS[column.better], *(_difference(column, at) for at in range(1, len(found.arms)))]
        for column in found.columns
        if any(column.differences)
    ]
    if paired:
        say(f"\npaired differences from {found.arms[0].name} over the same prompts")
        say(f"*: the interval excludes 0, of {LEAST_PROMPTS} or more prompts")
        table(("value", "", *(arm.name for arm in found.arms[1:])), paired)
    for line in _notes(found):
        say(line)


def _notes(found: Comparison) -> list[str]:
    """What is missing and what overlaps, each with the arms for which it is so; without them if all are."""
    names: dict[str, list[str]] = {}
    for arm in found.arms:
        notes = [f"missing: {each}" for each in grouped(arm.info.missing)]
        for note in (*notes, f"overlap with training: {describe(arm.info.overlap)}"):
            names.setdefault(note, []).append(arm.name)
    every = len(found.arms)
    return [note if len(arms) == every else f"{', '.join(arms)}: {note}" for note, arms in names.items()]


def _cell(value: ColumnResult | None) -> str | None:
    return None if value is None else with_interval(value)


def _difference(column: ComparedColumn, at: int) -> str | None:
    found = column.differences[at]
    if found is None:
        return None
    if found.low is None:
        return f"{found.value:+.3g}"
    mark = " *" if found.clear else ""
    return f"{found.value:+.3g} [{found.low:+.3g}, {found.high:+.3g}]{mark}"


def render(found: Comparison, form: str) -> str:
    """Return the table as "latex", "csv" or "md". Raises UserError for another form."""
    if form not in _FORMS:
        raise unknown("form", form, _FORMS, "--to")
    return _FORMS[form](found)


def _csv(found: Comparison) -> str:
    """A row per arm and value, with every number unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    own = ("protocol", "method", "value", "better", "mean", "low", "high", "spread", "spread_of", "n")
    writer.writerow([*own, "difference", "difference_low", "difference_high", "wins"])
    for column in found.columns:
        for arm, value, difference in zip(found.arms, column.values, column.differences, strict=True):
            if value is None:
                continue
            numbers = [value.value, value.low, value.high, value.spread, value.spread_of, value.n]
            apart = [None] * 4 if difference is None else [*difference]
            writer.writerow([arm.info.protocol.id, arm.name, column.name, column.better, *numbers, *apart])
    return out.getvalue()


def _md(found: Comparison) -> str:
    head = ["method", *(f"{column.metric} {ARROWS[column.better]}".strip() for column in found.columns)]
    rows = [
        [arm.name, *(_cell(column.values[number]) or "–" for column in found.columns)]
        for number, arm in enumerate(found.arms)
    ]
    return f"{markdown(head, rows)}\n\n{_caption(found)}\n"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["--"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _latex(found: Comparison) -> str:
    arrows = {"higher": r"$\uparrow$", "lower": r"$\downarrow$", None: ""}
    head = [
        "Method",
        *(f"{escaped(column.metric)} {arrows[column.better]}".strip() for column in found.columns),
    ]
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'c' * len(found.columns)}}}",
        r"\toprule",
    ]
    lines += [" & ".join(head) + r" \\", r"\midrule"]
    for number, arm in enumerate(found.arms):
        cells = [_latex_cell(column.values[number]) for column in found.columns]
        lines.append(" & ".join([escaped(arm.name), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", f"% {_caption(found)}"]
    return "\n".join(lines) + "\n"


def _latex_cell(value: ColumnResult | None) -> str:
    if value is None:
        return "--"
    if value.low is not None and value.high is not None:
        return f"{precise(value.value)} {{\\scriptsize [{precise(value.low)}, {precise(value.high)}]}}"
    if value.spread is not None:
        return rf"{precise(value.value)} $\pm$ {precise(value.spread)}"
    return precise(value.value)


def escaped(text: str) -> str:
    """Escape a text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _caption(found: Comparison) -> str:
    info = found.arms[0].info
    text = f"Protocol {info.protocol.id}, N = {info.n}; brackets: {info.level:.0%} bootstrap intervals"
    return "; ".join([text, *_notes(found)])


_FORMS: dict[str, Callable[[Comparison], str]] = {"latex": _latex, "csv": _csv, "md": _md}


def check_form(form: str | None) -> None:
    """Raise UserError for an unknown form, before anything is read."""
    if form is not None and form not in _FORMS:
        raise UserError(f"--to {form}: unknown form", f"one of {', '.join(_FORMS)}")
