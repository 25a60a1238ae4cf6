"""Targets for the numbers on one H200, and whether they are reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.gpu.report import Row, Table
from uhr.base.errors import UserError, unknown


@dataclass(frozen=True)
class Aim:
    """A bound on one number of the table. `text` has `{limit}` in it."""

    name: str
    text: str
    limit: float
    at_least: bool
    value: Callable[[Table], float | None]
    """The number; None where it was not measured, infinite where the work ran out of memory."""

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value < self.limit

    def verdict(self, table: Table) -> str:
        """One line."""
        value, text = self.value(table), self.text.format(limit=f"{self.limit:g}")
        if value is None:
            return f"not measured  {text}"
        return f"{'holds' if self.holds(value) else 'FAILS'}  {text}: {value:.4g}"

    def fails(self, table: Table) -> bool:
        value = self.value(table)
        return value is not None and not self.holds(value)


def _times(size: str) -> Callable[[Table], float | None]:
    def value(table: Table) -> float | None:
        rows = table.find(part="attention", what="forward", size=size)
        return max((row.times for row in rows if row.times and "windows" in row.variant), default=None)

    return value


def _seconds(sampler: str, size: str) -> Callable[[Table], float | None]:
    """By the wall clock: what is extrapolated is in the table and proves nothing."""

    def value(table: Table) -> float | None:
        rows = table.find(part="sampler", what=sampler, size=size)
        whole = (row.seconds for row in rows if row.seconds is not None and not row.extrapolated)
        return min(whole, default=None)

    return value


def _memory(sampler: str, size: str) -> Callable[[Table], float | None]:
    """Of a whole image, or of one of fewer steps: it goes through all stages, and no step takes more than
    another of its stage."""

    def value(table: Table) -> float | None:
        rows = table.find(part="sampler", what=sampler, size=size)
        if any(row.how == OUT_OF_MEMORY for row in rows):
            return math.inf
        return max((row.peak or 0.0 for row in rows if row.seconds is not None), default=None)

    return value


def _error(table: Table) -> float | None:
    return max((row.error for row in table.rows if row.error is not None), default=None)


OUT_OF_MEMORY = "out of memory"
"""`how` of a row whose work did."""

AIMS = (
    Aim("attention-4k", "windows {limit} times faster than dense flash, 4K", 12, True, _times("4K")),
    Aim("attention-8k", "windows {limit} times faster than dense flash, 8K", 30, True, _times("8K")),
    Aim(
        "patch-cascade-4k",
        "seconds of a 4K image below {limit}",
        35,
        False,
        _seconds("patch-cascade", "4K"),
    ),
    Aim("ultragen-4k", "seconds of a 4K image below {limit}", 45, False, _seconds("ultragen", "4K")),
    Aim("ultragen-8k", "GiB of an 8K image below {limit}", 141, False, _memory("ultragen", "8K")),
)
"""Of an H200."""

AGREE = Aim("agree", "back ends differ by less than {limit} in relative norm", 0.01, False, _error)
"""On any device and at any size."""


def chosen(own: Sequence[str], on_gpu: bool) -> list[Aim]:
    """The aims of a run: an H200's on a GPU, and those of the command line, `NAME=LIMIT` each."""
    known = {aim.name: aim for aim in (*AIMS, AGREE)}
    limits = dict(_limit(text, known) for text in own)
    names = [name for name in known if on_gpu or name in limits or name == AGREE.name]
    return [replace(known[name], limit=limits.get(name, known[name].limit)) for name in names]


def _limit(text: str, known: Mapping[str, Aim]) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in known:
        raise unknown("aim", name, known)
    try:
        return name, float(value)
    except ValueError:
        raise UserError(f"--aim {text}", "write it as NAME=NUMBER") from None


def conclusion(table: Table, aims: Sequence[Aim]) -> list[str]:
    """A line for each aim, and for each row that failed."""
    wide = max((len(aim.name) for aim in aims), default=0)
    lines = [f"{aim.name.ljust(wide)}  {aim.verdict(table)}" for aim in aims]
    return [*lines, *(f"FAILS  {_named(row)}: {row.how}" for row in table.rows if row.failed)]


def _named(row: Row) -> str:
    return f"{row.part} {row.what} {row.size}, {row.variant}"


def everything_holds(table: Table, aims: Sequence[Aim]) -> bool:
    return not any(row.failed for row in table.rows) and not any(aim.fails(table) for aim in aims)
