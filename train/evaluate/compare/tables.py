"""A comparison as a table: in the terminal, and as LaTeX, CSV or Markdown for papers."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from uhr.base.console import counted, say, table
from uhr.base.errors import UserError, unknown
from uhr.train.evaluate.bootstrap import LEAST_PROMPTS
from uhr.train.evaluate.choice import grouped
from uhr.train.evaluate.compare.comparison import ComparedColumn, Comparison, one_of_several
from uhr.train.evaluate.overlap.compare import cells, describe
from uhr.train.evaluate.result import ColumnResult
from uhr.train.evaluate.show import ARROWS, precise, with_interval


def print_comparison(found: Comparison) -> None:
    """Print values with intervals, then paired differences from the first arm."""
    info = found.arms[0].info
    incomplete = "" if info.protocol.complete else " (not all prompts of the protocol)"
    say(f"{info.protocol.id}, {counted(info.n, 'image')} each{incomplete}\n")
    rows = [
        [column.name, ARROWS[column.better], *(_cell(value, info.n) for value in column.values)]
        for column in found.columns
    ]
    rows += [[name, "", *values] for name, values in overlap_rows(arm.info.overlap for arm in found.arms)]
    table(("value", "", *(arm.name for arm in found.arms)), rows)
    paired = [
        [
            column.name,
            ARROWS[column.better],
            *(_difference(found, column, at) for at in range(1, len(found.arms))),
        ]
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
    any_known = any(arm.info.overlap is not None for arm in found.arms)
    for arm in found.arms:
        notes = [f"missing: {each}" for each in grouped(arm.info.missing)]
        if any_known:
            notes.append(f"overlap with training: {describe(arm.info.overlap)}")
        for note in notes:
            names.setdefault(note, []).append(arm.name)
    every = len(found.arms)
    return [note if len(arms) == every else f"{', '.join(arms)}: {note}" for note, arms in names.items()]


def overlap_rows(overlaps: Iterable[dict[str, Any] | None]) -> list[tuple[str, list[str]]]:
    """Rows of a table: how many prompts and references are in the training data, a cell per arm."""
    found = [cells(overlap) for overlap in overlaps]
    return [(name, [each[name] for each in found]) for name in found[0]]


def _cell(value: ColumnResult | None, images: int) -> str | None:
    return None if value is None else with_interval(value, images)


def _difference(comparison: Comparison, column: ComparedColumn, at: int) -> str | None:
    found = column.differences[at]
    if found is None:
        return None
    fewer = comparison.fewer(column, found)
    if found.low is None:
        return f"{found.value:+.3g}{fewer}"
    mark = " *" if found.clear else ""
    return f"{found.value:+.3g} [{found.low:+.3g}, {found.high:+.3g}]{mark}{fewer}"


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
    overlap = [cells(arm.info.overlap) for arm in found.arms]
    # in the order of `Difference`
    apart_from = ("difference", "difference_low", "difference_high", "wins", "prompts")
    writer.writerow([*own, *apart_from, *_named(overlap[0])])
    for column in found.columns:
        values = zip(found.arms, column.values, column.differences, overlap, strict=True)
        for arm, value, difference, shared in values:
            if value is None:
                continue
            numbers = [value.value, value.low, value.high, value.spread, value.spread_of, value.n]
            apart = [None] * len(apart_from) if difference is None else [*difference]
            row = [arm.info.protocol.id, arm.name, column.name, column.better, *numbers, *apart]
            writer.writerow([*row, *shared.values()])
    return out.getvalue()


def _named(names: Iterable[str]) -> list[str]:
    """Names as columns of a CSV."""
    return [name.replace(" ", "_") for name in names]


def _md(found: Comparison) -> str:
    names = headings([(column.name, column.metric) for column in found.columns])
    arrows = [ARROWS[column.better] for column in found.columns]
    head = ["method", *(f"{name} {arrow}".strip() for name, arrow in zip(names, arrows, strict=True))]
    rows = [
        [arm.name, *(_cell(column.values[number], found.arms[0].info.n) or "–" for column in found.columns)]
        for number, arm in enumerate(found.arms)
    ]
    for name, values in overlap_rows(arm.info.overlap for arm in found.arms):
        head.append(name)
        rows = [[*row, value] for row, value in zip(rows, values, strict=True)]
    return f"{markdown(head, rows)}\n\n{_caption(found)}\n"


def headings(columns: Sequence[tuple[str, str]]) -> list[str]:
    """Return how a table names its columns, given as name and metric: by the full name of the metric, which
    has its options, or by the column's where the metric has several.
    """
    metrics = [metric for _, metric in columns]
    return [one_of_several(name, metric, metrics) or metric for name, metric in columns]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["--"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _latex(found: Comparison) -> str:
    arrows = {"higher": r"$\uparrow$", "lower": r"$\downarrow$", None: ""}
    names = headings([(column.name, column.metric) for column in found.columns])
    both = zip(names, found.columns, strict=True)
    head = ["Method", *(f"{escaped(name)} {arrows[column.better]}".strip() for name, column in both)]
    overlap = overlap_rows(arm.info.overlap for arm in found.arms)
    head += [name for name, _ in overlap]
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}",
        r"\toprule",
    ]
    lines += [" & ".join(head) + r" \\", r"\midrule"]
    for number, arm in enumerate(found.arms):
        row = [_latex_cell(column.values[number], arm.info.n) for column in found.columns]
        row += [values[number].replace("≥", r"$\geq$").replace("–", "--") for _, values in overlap]
        lines.append(" & ".join([escaped(arm.name), *row]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", f"% {_caption(found)}"]
    return "\n".join(lines) + "\n"


def _latex_cell(value: ColumnResult | None, images: int) -> str:
    if value is None:
        return "--"
    text = precise(value.value).replace("–", "--")
    if value.low is not None and value.high is not None:
        text += f" {{\\scriptsize [{precise(value.low)}, {precise(value.high)}]}}"
    if value.spread is not None:
        text += rf" $\pm$ {precise(value.spread)}"
    return f"{text} ($n = {value.n}$)" if value.n < images else text


def escaped(text: str) -> str:
    """Escape a text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _caption(found: Comparison) -> str:
    info = found.arms[0].info
    text = f"Protocol {info.protocol.id}, N = {info.n}; brackets: {info.level:.0%} intervals over prompts"
    return "; ".join([text, *_notes(found)])


_FORMS: dict[str, Callable[[Comparison], str]] = {"latex": _latex, "csv": _csv, "md": _md}


def check_form(form: str | None) -> None:
    """Raise UserError for an unknown form, before anything is read."""
    if form is not None and form not in _FORMS:
        raise UserError(f"--to {form}: unknown form", f"one of {', '.join(_FORMS)}")
