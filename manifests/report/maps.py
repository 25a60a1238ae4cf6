"""Maps: how many images there are of each size, and of each aspect ratio and number of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from uhr.base.formatting import number
from uhr.manifests.schema import KEPT

SIDE = 260.0
"""Width and height of a map in SVG units."""

BINS = 28

SIZES = tuple((float(side), f"{side:,}") for side in (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536))
ASPECTS = ((1 / 4, "1:4"), (9 / 16, "9:16"), (1.0, "1:1"), (16 / 9, "16:9"), (4.0, "4:1"))
MEGAPIXELS = tuple((v, f"{v:g}") for v in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0))

LINES = ((9 / 16, "9:16"), (1.0, "1:1"), (16 / 9, "16:9"))
"""Aspect ratios that are drawn into the map of sizes."""

CLOSE = 26.0
"""The least distance of two labels in SVG units."""


@dataclass(frozen=True)
class Cell:
    """A square of a map: place and size in SVG units from the top left, and opacity in (0, 1]."""

    x: float
    y: float
    size: float
    opacity: float
    mostly_kept: bool
    label: str


@dataclass(frozen=True)
class Line:
    """A line in a map with its label at its end."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str


@dataclass(frozen=True)
class SizeMap:
    """Counts of images over two logarithmic axes; ticks are positions and labels."""

    title: str
    x_name: str
    y_name: str
    cells: list[Cell]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    label: str


@dataclass(frozen=True)
class _Span:
    """A logarithmic axis of BINS bins."""

    low: float
    high: float

    def place(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return SIDE * min(max(share, 0.0), 1.0)

    def sql(self, value: str) -> str:
        share = f"ln({value} / {self.low!r}) / {math.log(self.high / self.low)!r}"
        return f"least(greatest(floor({share} * {BINS}), 0), {BINS - 1})::INTEGER"

    def range(self, bin_: int) -> str:
        edges = [self.low * (self.high / self.low) ** ((bin_ + step) / BINS) for step in (0, 1)]
        return f"{number(edges[0])} to {number(edges[1])}"

    def ticks(self, values: Sequence[tuple[float, str]], flip: bool = False) -> list[tuple[float, str]]:
        """Return the labels inside of the axis, without those that are close to the one before."""
        found: list[tuple[float, str]] = []
        for value, label in values:
            place = self.place(value)
            if self.low <= value <= self.high and (not found or place - found[-1][0] >= CLOSE):
                found.append((place, label))
        return [(round(SIDE - place if flip else place, 2), label) for place, label in found]


def maps(connection: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> list[SizeMap]:
    """Return the maps of `samples`; none if its rows have no sizes."""
    if not {"width", "height"} <= set(columns):
        return []
    known = (
        "SELECT status, width::DOUBLE AS w, height::DOUBLE AS h FROM samples WHERE width > 0 AND height > 0"
    )
    (row,) = connection.sql(
        f"""SELECT min(least(w, h)), max(greatest(w, h)), min(w / h), max(w / h), min(w * h), max(w * h)
            FROM ({known})"""
    ).fetchall()
    if row[0] is None:
        return []
    side, aspect, area = (_span(low, high) for low, high in zip(row[::2], row[1::2], strict=True))
    megapixels = _Span(area.low / 1e6, area.high / 1e6)
    sizes = _counts(connection, known, side.sql("w"), side.sql("h"))
    ratios = _counts(connection, known, aspect.sql("w / h"), area.sql("w * h"))
    return [
        SizeMap(
            "Width and height",
            "width, px",
            "height, px",
            _cells(sizes, side, side),
            side.ticks(SIZES),
            side.ticks(SIZES, flip=True),
            [_line(side, ratio, label) for ratio, label in LINES],
            "Map of the images by width and height",
        ),
        SizeMap(
            "Aspect ratio and number of pixels",
            "width : height",
            "Mpx",
            _cells(ratios, aspect, megapixels),
            aspect.ticks(ASPECTS),
            megapixels.ticks(MEGAPIXELS, flip=True),
            [],
            "Map of the images by aspect ratio and megapixels",
        ),
    ]


def _span(low: float, high: float) -> _Span:
    """An axis with some space at its ends, also around a single value."""
    space = max((high / low) ** 0.03, 1.2)
    return _Span(low / space, high * space)


def _counts(
    connection: duckdb.DuckDBPyConnection, rows: str, x: str, y: str
) -> dict[tuple[int, int], tuple[int, int]]:
    """Return (all images, kept images) by bin."""
    query = f"""SELECT {x} AS x, {y} AS y, count(*), count(*) FILTER (WHERE status = '{KEPT}')
                FROM ({rows}) GROUP BY ALL ORDER BY ALL"""
    return {(x_, y_): (count, kept) for x_, y_, count, kept in connection.sql(query).fetchall()}


def _cells(counts: dict[tuple[int, int], tuple[int, int]], x: _Span, y: _Span) -> list[Cell]:
    most = max(count for count, _ in counts.values())
    step = SIDE / BINS
    return [
        Cell(
            x=round(i * step, 2),
            y=round(SIDE - (j + 1) * step, 2),
            size=round(step - 0.4, 2),
            # the square root: a bin with one image among thousands can be seen
            opacity=round(0.2 + 0.8 * math.sqrt(count / most), 3),
            mostly_kept=2 * kept >= count,
            label=f"{x.range(i)} by {y.range(j)}: {number(count)} images, {number(kept)} kept",
        )
        for (i, j), (count, kept) in counts.items()
    ]


def _line(side: _Span, ratio: float, label: str) -> Line:
    """The line of all sizes with an aspect ratio, inside of the map of widths and heights."""
    # y = x / ratio, from the left or lower edge to the right or upper one
    low = max(side.low, side.low * ratio)
    high = min(side.high, side.high * ratio)
    ends = [(side.place(width), SIDE - side.place(width / ratio)) for width in (low, high)]
    (x1, y1), (x2, y2) = ends
    return Line(round(x1, 2), round(y1, 2), round(x2, 2), round(y2, 2), label)
