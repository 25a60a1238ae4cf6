"""The page of an evaluated run: a chart of each value against steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uhr.base.files import atomic, saving
from uhr.train.evaluate.choice import grouped
from uhr.train.evaluate.compare.comparison import one_of_several
from uhr.train.evaluate.compare.template import template
from uhr.train.evaluate.overlap.compare import describe
from uhr.train.evaluate.result import ColumnResult, MissingMetric
from uhr.train.evaluate.show import ARROWS, precise, with_interval

LEFT, RIGHT, TOP, BOTTOM = 60.0, 440.0, 20.0, 180.0
"""The plot area in SVG units."""

MOST_TICKS = 6


def write_page(facts: Mapping[str, Any], out: Path) -> None:
    """Write the page of `checkpoints.json`, atomically."""
    steps, images = facts["steps"], facts["n"]
    names = list(dict.fromkeys(name for each in steps for name in each["values"]))
    metrics = {name: steps[0]["values"][name]["metric"] for name in names}
    text = template(Path(__file__).parent / "page.html").render(
        facts=facts,
        percent=f"{facts['level']:.0%}",
        overlap=None if facts["overlap"] is None else describe(facts["overlap"]),
        missing=grouped([MissingMetric.model_validate(each) for each in facts["missing"]]),
        charts=[chart for name in names if (chart := _chart(steps, name, images)) is not None],
        # also the values that no step has, which have no chart
        heads=[
            (
                metrics[name],
                one_of_several(name, metrics[name], list(metrics.values())),
                ARROWS[_column(steps[0], name).better],
            )
            for name in names
        ],
        rows=[
            [each["step"], [with_interval(_column(each, name), images) for name in names]] for each in steps
        ],
    )
    with saving(out, "free space there"), atomic(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _column(each: Mapping[str, Any], name: str) -> ColumnResult:
    values = {key: value for key, value in each["values"][name].items() if key != "metric"}
    return ColumnResult.model_validate({"name": name, **values})


def _ends(column: ColumnResult) -> tuple[float, float]:
    """The lowest and highest value to show of a column."""
    assert column.value is not None
    spread = column.spread or 0.0
    low = column.value - spread if column.low is None else column.low
    return low, column.value + spread if column.high is None else column.high


def _chart(steps: Sequence[Mapping[str, Any]], name: str, images: int) -> dict[str, Any] | None:
    """The geometry of a chart, of the steps that have a value; None if none has.

    images: how many were scored at each step.
    """
    columns = ((each["step"], _column(each, name)) for each in steps)
    # the mean of a category has none where no image has a question of it
    points = [(step, column) for step, column in columns if column.value is not None]
    if not points:
        return None
    ends = [_ends(column) for _, column in points]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    first, last = points[0][0], points[-1][0]

    def x(step: int) -> float:
        middle = (LEFT + RIGHT) / 2
        return (
            round(LEFT + 12 + (RIGHT - LEFT - 24) * (step - first) / (last - first), 1)
            if last > first
            else middle
        )

    def y(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return round(BOTTOM - (BOTTOM - TOP) * share, 1)

    places = [(x(step), y(column.value or 0.0)) for step, column in points]
    has_band = all(column.low is not None for _, column in points)
    edges = [(x(step), y(end[0]), y(end[1])) for (step, _), end in zip(points, ends, strict=True)]
    upper = [f"{at},{top}" for at, _, top in edges]
    lower = [f"{at},{bottom}" for at, bottom, _ in reversed(edges)]
    shown = [points[at * (len(points) - 1) // (MOST_TICKS - 1)][0] for at in range(MOST_TICKS)]
    ticks = shown if len(points) > MOST_TICKS else [step for step, _ in points]
    column = points[0][1]
    return {
        "name": name,
        "metric": steps[0]["values"][name]["metric"],
        "arrow": ARROWS[column.better],
        "label": f"{name} from {precise(points[0][1].value)} to {precise(points[-1][1].value)}",
        "line": " ".join(f"{at},{height}" for at, height in places),
        "band": " ".join([*upper, *lower]) if has_band else "",
        # a band has no width at a single step
        "bars": [] if has_band and len(points) > 1 else edges,
        "dots": [
            {"x": at, "y": height, "label": f"step {step}: {with_interval(column, images)}"}
            for (at, height), (step, column) in zip(places, points, strict=True)
        ],
        # one label where all values are the same
        "labels": [(y(end), precise(end)) for end in dict.fromkeys((low, high))],
        "ticks": [(x(step), step) for step in dict.fromkeys(ticks)],
    }
