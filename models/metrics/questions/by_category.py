"""Columns of scores that are means over an image's questions, all of them or those of one category."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uhr.models.metrics.base import ScoreColumn, column_name

RANGE = "[0, 100]"


def category_columns(name: str, categories: Sequence[str], meaning: str, count: str) -> list[ScoreColumn]:
    """Return two columns for each category: its mean in percent, and how many `count` that is the mean of.

    Over a set the mean is weighted by the counts: every question, not every image, counts the same.
    """
    columns = []
    for category in categories:
        mean = column_name(f"{name}_{category}")
        number = f"{mean}_n"
        columns.append(ScoreColumn(mean, "higher", f"{meaning}: {category}", RANGE, weight=number))
        columns.append(ScoreColumn(number, None, f"number of {count} in {mean}", ">= 0"))
    return columns


def category_values(scores: Mapping[str, Sequence[float]], categories: Sequence[str]) -> list[float]:
    """Return the values of `category_columns` from the scores in [0, 1] of each category of an image."""
    values: list[float] = []
    for category in categories:
        found = scores.get(category, ())
        values += [percent(found) if found else 0.0, float(len(found))]
    return values


def percent(scores: Sequence[float]) -> float:
    """100 times the mean of one or more scores."""
    return 100 * sum(scores) / len(scores)


def distinct(categories: Sequence[str], place: Callable[[str], Any] = str) -> tuple[str, ...]:
    """The categories of a benchmark, each once, in the order of `place`."""
    return tuple(sorted(set(categories), key=place))
