"""The page of an experiment: its tables, then prompts and images as on the page of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uhr.train.evaluate.compare import page
from uhr.train.evaluate.compare.comparison import Arm, compare, one_of_several
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
                "name": _several(facts, column),
                "meaning": column["meaning"],
                "arrow": ARROWS[column["better"]],
                "cells": [tables.cell(column["arms"][name]) or "–" for name in names],
            }
            for column in facts["columns"]
        ],
        "overlap": tables.overlap_of(facts),
        "notes": tables.notes(facts),
        "differences": [row for column in facts["columns"] for row in _differences(facts, column)],
        "recipes": [arm["recipe"] for arm in facts["arms"].values() if arm["recipe"] is not None],
        "part_titles": tables.PARTS,
        "parts": [[_text(cell) for cell in row] for row in tables.part_rows(facts)],
        "unequal": list(facts["unequal"]),
        "budgets": [
            {"title": title, "cells": cells, "unequal": title.endswith(tables.MARK)} for title, *cells in rows
        ],
    }
    page.write_page(compare(arms), out, experiment=content)


def _several(facts: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    """See `one_of_several`."""
    metrics = [each["metric"] for each in facts["columns"]]
    return one_of_several(column["name"], column["metric"], metrics)


def _differences(facts: Mapping[str, Any], column: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    found = {
        name: value["difference"]
        for name, value in column["arms"].items()
        if value is not None and value.get("difference")
    }
    known = [page.Shown(name, d["value"], d["low"], d["high"], d["clear"]) for name, d in found.items()]
    rows = page.difference_rows((column["metric"], _several(facts, column)), column["better"], known)
    for row, difference in zip(rows, found.values(), strict=True):
        low, high = difference["prompts"]["low"], difference["prompts"]["high"]
        prompts = "–" if low is None else f"[{low:+.4g}, {high:+.4g}]"
        yield {**row, "prompts": prompts, "one_seed": difference["one_seed"]}


def _text(cell: Any) -> str:
    if cell is None:
        return "–"
    return precise(cell) if isinstance(cell, float) else str(cell)
