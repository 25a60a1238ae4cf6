"""The page of an experiment: its tables, then prompts and images as on the page of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uhr.train.evaluate.compare import page
from uhr.train.evaluate.compare.comparison import Arm, compare
from uhr.train.evaluate.compare.template import template
from uhr.train.evaluate.experiments import tables
from uhr.train.evaluate.show import ARROWS, precise


def check_page() -> None:
    """Raise UserError, before anything runs, if the page cannot be made at the end."""
    template(page.PAGE)


def write_page(facts: Mapping[str, Any], arms: Sequence[Arm], out: Path) -> None:
    """Write the page of an experiment.

    Args:
        facts: the content of `results.json`.
        arms: a result of each arm, whose images are shown.
    """
    names = list(facts["arms"])
    budgets = {name: arm["budget"] for name, arm in facts["arms"].items()}
    rows = tables.budget_rows(budgets, facts["unequal"])
    content = {
        "name": facts["name"],
        "arms": names,
        "method": f"{facts['method'][:1].upper()}{facts['method'][1:]}",
        "values": [
            {
                "metric": column["metric"],
                "name": "" if column["name"] in _own_names(facts, column["metric"]) else column["name"],
                "meaning": column["meaning"],
                "arrow": ARROWS[column["better"]],
                "cells": [tables.cell(column["arms"][name]) or "–" for name in names],
            }
            for column in facts["columns"]
        ],
        "overlap": tables.overlap_of(facts),
        "notes": tables.notes(facts),
        "differences": [row for column in facts["columns"] for row in _differences(column, names[1:])],
        "part_titles": tables.PARTS,
        "parts": [[_text(cell) for cell in row] for row in tables.part_rows(facts)],
        "unequal": list(facts["unequal"]),
        "budgets": [
            {"title": title, "cells": cells, "unequal": title.endswith(tables.MARK)} for title, *cells in rows
        ],
    }
    page.write_page(compare(arms), out, experiment=content)


def _own_names(facts: Mapping[str, Any], metric: str) -> list[str]:
    """The column of a metric with a single one, whose name says no more than that of the metric."""
    columns = [column["name"] for column in facts["columns"] if column["metric"] == metric]
    return columns if len(columns) == 1 else []


def _differences(column: Mapping[str, Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    found = {
        name: value["difference"]
        for name in names
        if (value := column["arms"][name]) is not None and value.get("difference")
    }
    known = [page.Shown(name, d["value"], d["low"], d["high"], d["clear"]) for name, d in found.items()]
    rows = page.difference_rows(column["metric"], column["better"], known)
    for row, difference in zip(rows, found.values(), strict=True):
        low, high = difference["prompts"]["low"], difference["prompts"]["high"]
        prompts = "–" if low is None else f"[{low:+.4g}, {high:+.4g}]"
        yield {**row, "prompts": prompts, "one_seed": difference["one_seed"]}


def _text(cell: Any) -> str:
    if cell is None:
        return "–"
    return precise(cell) if isinstance(cell, float) else str(cell)
