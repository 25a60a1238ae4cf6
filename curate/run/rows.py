"""The rows of one task. They collect columns and verdicts, and become the part that the task writes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from uhr.base import parquet
from uhr.curate.faults import CHANGED
from uhr.curate.planning.planned import PlannedStage
from uhr.curate.rules import Judge, Rule, RuleCounts, Verdict
from uhr.curate.run.conversion import Converter, converter_for
from uhr.curate.stage import Child
from uhr.manifests.schema import BASE, FAILED, KEPT, REJECTED, SOURCES, patch_id, sample_id
from uhr.runtime.units import UnitPlan

PREVIEW = (
    pa.field("_jpeg", pa.binary()),
    pa.field("_preview_width", pa.int32()),
    pa.field("_preview_height", pa.int32()),
)
"""Columns of a part that are not in the manifest's rows; they go to the preview parts."""

DECODING, PREVIEWS, VIEWS = "decoding", "making previews", "making views"
"""What is counted besides the calls of stages, by these labels."""

RAN = pa.field("_ran", pa.list_(pa.field("element", pa.string())))
"""Column of a part that is not in the manifest: the labels of the task's stages that gave values for the row.
"""

_LISTED = [column.name for column in (*BASE, *SOURCES) if column.name != "content_hash"]
"""Columns that do not depend on the image's bytes: uri, listed version, the values of sidecars and source."""

UNDONE = "undone"
"""The status, in a part, of a row that was left because its host or a stage is paused."""

_TALLY = b"tally"

_ADDED_UP = ("seen", "lost", "broken_sidecars", "measured", "microseconds", "reused")
"""The counts of a unit to which all of its tasks add."""


class Tally(NamedTuple):
    """Counts of the rows of one or more units: kept, rejected by rule, failed by kind of fault.

    `seen` counts the rows that reached each rule, `broken_sidecars` the images with a broken sidecar, `lost`
    the rows that a rule took out of its channel, and `undone` those that were left because their host or
    stage is paused. By stage, `measured` counts the rows that it was called for, `microseconds` what the
    calls took, and `reused` the rows whose results are those of an earlier run.
    """

    kept: int
    rejected: Counter[str]
    failed: Counter[str]
    seen: Counter[str]
    broken_sidecars: int
    lost: Counter[str]
    undone: int
    measured: Counter[str]
    microseconds: Counter[str]
    reused: Counter[str]

    @classmethod
    def empty(cls) -> Tally:
        counts = [Counter[str]() for _ in range(7)]
        kept, broken_sidecars, undone = 0, 0, 0
        return cls(kept, counts[0], counts[1], counts[2], broken_sidecars, counts[3], undone, *counts[4:])

    @classmethod
    def of_part(cls, part: Path) -> Tally:
        """Read the tally that a part has in its footer."""
        tree = json.loads(parquet.schema_of(part).metadata[_TALLY])
        return cls._make(Counter(value) if isinstance(value, dict) else value for value in tree)

    @classmethod
    def of_unit(cls, units: UnitPlan, unit: int) -> Tally:
        """Return the tally of a finished unit: the verdicts of its last part, and what all parts counted."""
        tally = cls.of_part(units.part(unit))
        for segment in range(1, units.segments):
            tally = cls.of_part(units.part(unit, segment)).after(tally)
        return tally

    def plus(self, other: Tally) -> Tally:
        return Tally(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def after(self, earlier: Tally) -> Tally:
        """Return the tally of rows with these verdicts, which the tasks of `earlier` judged before."""
        return self._replace(
            **{name: getattr(earlier, name) + getattr(self, name) for name in _ADDED_UP},
        )

    def summary(self) -> str:
        """Return a text such as `kept 10, rejected 3, failed 1`."""
        counts = {KEPT: self.kept, REJECTED: self.rejected.total(), FAILED: self.failed.total()}
        counts |= {UNDONE: self.undone} if self.undone else {}
        return ", ".join(f"{name} {n:,}" for name, n in counts.items())


class _Timer:
    """A context manager that counts the calls of a stage, and adds up their time. As a class of its own it
    takes a quarter of the time of one of `contextlib`, which matters at thousands of images a second.
    """

    __slots__ = ("_start", "calls", "seconds")

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start
        self.calls += 1


class UnitRows:
    """Collects the rows of a task. A row is a dict of the columns known so far; its index is that of its
    item, or comes after those if it is a patch that was added.

    rows: status None is a row without a verdict.
    """

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._converters: dict[str, dict[str, Converter]] = {}
        self._timers: dict[tuple[str, int], _Timer] = {}
        self._rows = rows
        self._previews: dict[int, tuple[bytes, int, int]] = {}
        self._hidden: set[int] = set()
        self._ran: dict[int, list[str]] = {}
        self.broken_sidecars = 0
        self.counts = RuleCounts()
        self.reused: Counter[str] = Counter()

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: dict[str, Any]) -> int:
        """Add a row, and return its index."""
        self._rows.append(row)
        return len(self._rows) - 1

    def alive(self) -> list[int]:
        """Rows without a verdict."""
        return [index for index, row in enumerate(self._rows) if row["status"] is None]

    def put(self, index: int, planned: PlannedStage[Any], values: Mapping[str, Any]) -> None:
        """Add the values that a stage returned for a row.

        Raises TypeError or ValueError if they are not a mapping of the stage's columns, or if a column cannot
        hold its value.
        """
        converters = self._converters.get(planned.label)
        if converters is None:
            converters = self._converters[planned.label] = {
                column.name: converter_for(column.type) for column in planned.stage.adds
            }
        if not isinstance(values, Mapping):
            raise TypeError(f"annotate gives {type(values).__name__}, not a mapping of its columns")
        if not values.keys() <= converters.keys():
            undeclared = min(values.keys() - converters.keys())
            raise ValueError(f"it gives column {undeclared!r}, which it does not declare")
        converted = {}
        for name, value in values.items():
            try:
                converted[name] = converters[name](value)
            except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
                given = f"{type(value).__name__} {_short(value)}"
                raise ValueError(f"column '{name}' cannot hold {given} ({_first_line(error)})") from error
        self._rows[index].update(converted)
        self._note(index, planned, converted)

    def take_over(self, index: int, planned: PlannedStage[Any], values: Mapping[str, Any]) -> None:
        """Add the values that a stage gave in an earlier run."""
        self._rows[index].update(values)
        self._note(index, planned, values)
        self.reused[planned.label] += 1

    def _note(self, index: int, planned: PlannedStage[Any], values: Mapping[str, Any]) -> None:
        if values.get(getattr(planned.stage, "hides", None)) is not None:
            self.hide(index)
        self._ran.setdefault(index, []).append(planned.label)

    def timed(self, label: str, rows: int = 1) -> _Timer:
        """Return a context manager that counts a call of a stage on some rows, and the time of its block."""
        timer = self._timers.get((label, rows))
        if timer is None:
            timer = self._timers[label, rows] = _Timer()
        return timer

    def mark(self, index: int, label: str) -> None:
        """Note that a stage gave its result for a row whose columns it does not write: it cut its patches."""
        self._ran.setdefault(index, []).append(label)

    def leave(self, index: int, why: str) -> None:
        """Leave a row undone: it has no verdict, and the run cannot be finished without it."""
        self._rows[index].update(status=UNDONE, reason=None, error=why)

    def put_preview(self, index: int, jpeg: bytes, width: int, height: int) -> None:
        if index not in self._hidden:
            self._previews[index] = (jpeg, width, height)

    def hide(self, index: int) -> None:
        """Drop the preview of a row, and take none later."""
        self._hidden.add(index)
        self._previews.pop(index, None)

    def fail(self, index: int, kind: str, message: str) -> None:
        if kind == CHANGED:
            # earlier measurements may be of another version of the file
            row = self._rows[index]
            self._rows[index] = {name: row.get(name) for name in _LISTED}
            self._previews.pop(index, None)
            self._ran.pop(index, None)
        self.decide(index, Verdict(FAILED, kind, message))

    def decide(self, index: int, verdict: Verdict) -> None:
        """Give a row its verdict; the first one stays if it is measured on because of `all_rules`."""
        row = self._rows[index]
        if row["status"] is None:
            error = verdict.error and verdict.error.encode("utf-8", "replace").decode()
            row.update(status=verdict.status, reason=verdict.reason, error=error)

    def rule(self, judge: Judge, rules: Sequence[Rule], indices: list[int], go_on: bool = False) -> list[int]:
        """Evaluate rules for these rows, and return the rows that are measured on: those that are kept, and
        with `go_on` also the rejected ones.
        """
        if not rules or not indices:
            return indices
        rulings = judge.rulings(rules, [self._rows[i] for i in indices], self.counts)
        left = []
        for index, ruling in zip(indices, rulings, strict=True):
            row = self._rows[index]
            if ruling.channels is not None:
                row["channels"] = ruling.channels
            if ruling.rejected_by:
                row["rejected_by"] = [*(row.get("rejected_by") or ()), *ruling.rejected_by]
            if ruling.verdict is not None:
                self.decide(index, ruling.verdict)
            if row["status"] is None or (
                go_on and (ruling.verdict is None or ruling.verdict.status == REJECTED)
            ):
                left.append(index)
        return left

    def part(self, schema: pa.Schema, channels: Sequence[str], previews: bool) -> pa.Table:
        """Return the part: the columns of `schema`, which stages of the task gave values for each row
        (`RAN`), previews if wanted, and the tally as schema metadata.
        """
        for row in self._rows:
            if row["status"] is None:
                row["status"] = KEPT
            if channels:
                left = row.get("channels")
                row["channels"] = [] if row["status"] != KEPT else list(channels) if left is None else left
        # most columns of a set without sidecars have no value in any row: they are made at once
        given = {name for row in self._rows for name, value in row.items() if value is not None}
        columns = [
            pa.array([row.get(f.name) for row in self._rows], f.type)
            if f.name in given
            else pa.nulls(len(self._rows), f.type)
            for f in schema
        ]
        fields = [*schema, RAN]
        columns.append(pa.array([self._ran.get(i) for i in range(len(self._rows))], RAN.type))
        if previews:
            shown = [self._previews.get(index, (None, None, None)) for index in range(len(self._rows))]
            columns += [pa.array([p[i] for p in shown], f.type) for i, f in enumerate(PREVIEW)]
            fields += PREVIEW
        metadata = {_TALLY: json.dumps(self._tally()).encode()}
        return pa.table(columns, schema=pa.schema(fields, metadata=metadata))

    def _tally(self) -> Tally:
        verdicts = Counter((row["status"], row["reason"]) for row in self._rows)
        by_reason = {
            status: Counter({r: n for (s, r), n in sorted(verdicts.items(), key=str) if s == status})
            for status in (REJECTED, FAILED)
        }
        kept = verdicts[(KEPT, None)]
        seen = Counter(dict(sorted(self.counts.seen.items())))
        lost = Counter(dict(sorted(self.counts.lost.items())))
        measured: Counter[str] = Counter()
        seconds: dict[str, float] = {}
        for (label, rows), timer in self._timers.items():
            measured[label] += rows * timer.calls
            seconds[label] = seconds.get(label, 0.0) + timer.seconds
        return Tally(
            kept,
            by_reason[REJECTED],
            by_reason[FAILED],
            seen,
            self.broken_sidecars,
            lost,
            sum(n for (status, _), n in verdicts.items() if status == UNDONE),
            measured,
            Counter({label: round(taken * 1e6) for label, taken in seconds.items()}),
            self.reused,
        )


def _short(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def source_row(item: dict[str, Any], stated: Sequence[str]) -> dict[str, Any]:
    """Return the row of an item of the source as it was listed, with the columns that the source states."""
    fault = item["fault"]
    return {
        **{name: item[name] for name in stated},
        "sample_id": sample_id(item["uri"], item.get("source_name")),
        "status": None if fault is None else FAILED,
        "reason": fault,
        "error": item["fault_words"],
    }


def later_row(item: dict[str, Any]) -> dict[str, Any]:
    """Return the row of an item of a later pass: a row that earlier passes have kept."""
    return {**item, "status": None, "reason": None, "error": None}


def child_row(parent: Mapping[str, Any], child: Child, inherited: Sequence[str]) -> dict[str, Any]:
    """Return the row of a patch of an image, with these columns of its image."""
    row = {column.name: None for column in BASE} | {name: parent.get(name) for name in inherited}
    box = tuple(int(each) for each in child.box)
    sample = patch_id(parent["sample_id"], (box[0], box[1], box[2], box[3]))
    return row | {"sample_id": sample, "parent_id": parent["sample_id"], "box": list(box)}
