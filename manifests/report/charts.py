"""Histograms as plain geometry; the template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from uhr.base.formatting import number
from uhr.manifests.report.thresholds import Threshold
from uhr.manifests.schema import STATUSES, Column
from uhr.manifests.sql import finite_column
from uhr.manifests.stats import Numeric

WIDTH, HEIGHT = 320.0, 96.0
"""Size of the plot area in SVG units."""

BINS = 40
WIDEST = 32.0
"""Largest width of a bar in SVG units, for columns with few values."""


@dataclass(frozen=True)
class BarSegment:
    """The part of a bar that belongs to one status, in SVG units from the top left."""

    status: str
    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A threshold of a rule on the axis."""

    x: float
    label: str
    anchor: str


@dataclass(frozen=True)
class Histogram:
    """The distribution of a numeric column by status, with the thresholds of rules.

    `low` and `high` are the labels at the ends of the axis, each a position and a text.
    """

    column: Column
    numeric: Numeric
    segments: list[BarSegment]
    marks: list[Mark]
    low: tuple[float, str]
    high: tuple[float, str]
    log: bool
    label: str


@dataclass(frozen=True)
class Axis:
    """Maps values to bins and positions: linear, or logarithmic if values span orders of magnitude.

    `first` and `last` are the values to show; `low` and `high`, the outer edges of the bins, are up to one
    bin further out.
    """

    low: float
    high: float
    bins: int
    log: bool
    first: float
    last: float

    def place(self, value: float) -> float:
        """Return the position of a value in SVG units, [0, WIDTH]; values beyond the ends are at the ends."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(max(value, self.low)) - low) / (high - low)
        return WIDTH * min(max(share, 0.0), 1.0)

    def sql(self, value: str) -> str:
        """Return SQL for the bin, [0, bins), of an SQL number; values beyond the ends are in the end bins."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        scaled = f"log10(greatest({value}, {self.low!r}))" if self.log else value
        share = f"({scaled} - {low!r}) / {high - low!r}"
        return f"least(greatest(floor({share} * {self.bins} + 1e-9), 0), {self.bins - 1})::INTEGER"

    def edges(self, bin_: int) -> tuple[float, float]:
        """Return the values at the edges of a bin."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        ends = [low + (high - low) * (bin_ + step) / self.bins for step in (0, 1)]
        return (10 ** ends[0], 10 ** ends[1]) if self.log else (ends[0], ends[1])

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def axis_for(column: Column, numeric: Numeric, cuts: Sequence[float]) -> Axis | None:
    """Make an axis that shows p1 to p99 and every threshold; None if there is nothing to show.

    One integer alone has one bin; one number that may have fractions has none.
    """
    least, greatest = numeric.least, numeric.greatest
    low, high = numeric.quantiles["p1"], numeric.quantiles["p99"]
    if least is None or greatest is None or low is None or high is None:
        return None
    if pa.types.is_integer(column.type) and greatest - least < BINS:
        return Axis(least - 0.5, greatest + 0.5, round(greatest - least) + 1, False, least, greatest)
    if least == greatest:
        return None
    # outliers must not compress all other values into one bar
    spread = high - low
    if not math.isfinite(greatest - least):
        return None  # the width of such an axis is infinite
    low = least if spread == 0 or least > low - spread else low
    high = greatest if spread == 0 or greatest < high + spread else high
    low, high = min([low, *cuts]), max([high, *cuts])
    log = low > 0 and high / low > 100
    return _aligned(low, high, log, cuts[0] if cuts else low)


def _aligned(low: float, high: float, log: bool, cut: float) -> Axis:
    """Make an axis of BINS or BINS + 1 bins with an edge at the threshold `cut`, so that no bar spans it."""
    start, end, cut = (math.log10(v) if log else v for v in (low, high, cut))
    step = (end - start) / BINS
    below = math.ceil((cut - start) / step - 1e-9)
    above = math.ceil((end - cut) / step - 1e-9)
    start, end = cut - below * step, cut + above * step
    return Axis(10**start if log else start, 10**end if log else end, below + above, log, low, high)


def histogram(
    connection: duckdb.DuckDBPyConnection,
    column: Column,
    numeric: Numeric,
    thresholds: Sequence[Threshold],
    value: str | None = None,
) -> Histogram | None:
    """Compute the histogram of a column of the relation `samples`, or of `value`, SQL over its rows."""
    mine = [threshold for threshold in thresholds if threshold.column == column.name]
    axis = axis_for(column, numeric, [threshold.value for threshold in mine])
    if axis is None:
        return None
    inside = f"SELECT status, {value or finite_column(column.name)} AS value FROM samples"
    query = f"""
        SELECT {axis.sql("value")} AS bin, status, count(*) FROM ({inside})
        WHERE value IS NOT NULL GROUP BY bin, status"""
    counts = {(bin_, status): count for bin_, status, count in connection.sql(query).fetchall()}
    cuts = "; ".join(f"a rule requires {t.sign} {number(t.value)}" for t in mine)
    middle = f"median {number(numeric.quantiles['p50'])} {column.unit}".strip()
    return Histogram(
        column=column,
        numeric=numeric,
        segments=_segments(axis, counts),
        marks=[_mark(axis, threshold) for threshold in mine],
        low=(round(axis.place(axis.first), 2), number(axis.first)),
        high=(round(axis.place(axis.last), 2), number(axis.last)),
        log=axis.log,
        label=f"Histogram of {column.name}: {middle}{'; ' + cuts if cuts else ''}",
    )


def _segments(axis: Axis, counts: dict[tuple[int, str], int]) -> list[BarSegment]:
    totals = [sum(counts.get((bin_, status), 0) for status in STATUSES) for bin_ in range(axis.bins)]
    tallest = max(totals)
    step = WIDTH / axis.bins
    width = min(step - min(1, step / 4), WIDEST)
    result = []
    for bin_ in range(axis.bins):
        low, high = axis.edges(bin_)
        top = HEIGHT
        for status in STATUSES:
            count = counts.get((bin_, status), 0)
            if count:
                tall = HEIGHT * count / tallest
                top -= tall
                label = f"{number(low)} to {number(high)}: {count} {status}"
                x = round((bin_ + 0.5) * step - width / 2, 2)
                result.append(BarSegment(status, x, round(top, 2), round(width, 2), round(tall, 2), label))
    return result


def _mark(axis: Axis, threshold: Threshold) -> Mark:
    x = axis.place(threshold.value)
    return Mark(
        round(x, 2), f"{threshold.sign} {number(threshold.value)}", "end" if x > WIDTH / 2 else "start"
    )
