"""Run the passes of a plan: the tasks of each, the stages over the set after them, the next items."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from uhr.base import hub, parquet
from uhr.base.config import fingerprint
from uhr.base.console import progress, warn
from uhr.base.errors import Unfinished
from uhr.curate.faults import TRANSIENT
from uhr.curate.planning import machine
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.planning.planned import ModelSegment, Pass
from uhr.curate.rules import RuleCounts
from uhr.curate.run.earlier.again import Again
from uhr.curate.run.earlier.files import keys_of
from uhr.curate.run.earlier.run_file import RunFile
from uhr.curate.run.lanes import Lanes
from uhr.curate.run.parts import frame_schema, item_columns, unit_rows
from uhr.curate.run.rows import UNDONE, Tally
from uhr.curate.run.scoring import ScoreWork
from uhr.curate.run.table import SampleTable
from uhr.curate.run.work import CurateWork
from uhr.manifests.sources.base import Source
from uhr.runtime.mirror import shown as shown_place
from uhr.runtime.pool import InlineRunner, RayRunner
from uhr.runtime.units import Limits, PlanMismatch, Runner, Segment, UnitPlan, run_tasks

PARTS_VERSION = 3
"""Increase it when parts of an unfinished run could be misread by another version."""

WIDEST_VIEW = 3
"""Long side of a view over its short side, for the largest size of a unit's views."""


@dataclass
class Finished:
    """The result of all passes of `plan` over `source`, the source during the run: `batches` yields all
    `rows`, `units` has the plan of each pass.

    `rejected` counts rows by reason, `seen` and `lost` by rule as in `RuleCounts`. `tally` has what the tasks
    counted.
    """

    plan: CurationPlan
    source: Source
    batches: Callable[[], Iterator[pa.RecordBatch]]
    rows: int
    units: list[UnitPlan]
    seen: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally.empty)


@contextlib.contextmanager
def passes_run(
    plan: CurationPlan,
    folder: Path,
    items: pa.Table,
    source: Source,
    runner: Runner,
    described: RunFile,
    retry: Collection[str] = (),
) -> Generator[Finished]:
    """Run all passes over `items`; the block can then read the rows.

    folder: of the units, with the file `described` and what earlier runs measured. retry: the kinds of fault
    whose rows are measured again, besides those that may pass by themselves.

    Raises PlanMismatch if the folder has units of another run.
    """
    this = plan.passes[0]
    with contextlib.ExitStack() as stack:
        # a branch of a model's repository may move while the run goes on
        stack.enter_context(hub.pinned(machine.commits(plan.stages)))
        table = None
        if len(plan.passes) > 1 or this.sets:
            table = stack.enter_context(SampleTable(folder, plan))
        run = _Run(plan, folder, source, runner, table)
        run.again = Again(folder, described, frozenset((*retry, *TRANSIENT)))
        for number in range(len(plan.passes)):
            run.do(number, items)
        yield run.finished()


class _Run:
    """A run over its passes; `do` runs one of them."""

    again: Again

    def __init__(
        self, plan: CurationPlan, folder: Path, source: Source, runner: Runner, table: SampleTable | None
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._source = source
        self._runner = runner
        self._table = table
        self._keys = keys_of(plan)
        self._units: list[UnitPlan] = []
        self._tally = Tally.empty()
        self._counts = RuleCounts()

    def do(self, number: int, items: pa.Table) -> None:
        """Run the tasks of a pass and the stages over the set after it. `items` are those of the first."""
        plan, this = self._plan, self._plan.passes[number]
        if number:
            assert self._table is not None
            patches = this.of_patches and this.expand is None
            items = self._table.items(item_columns(plan, number), patches)
        together = "uri" if this.of_patches and this.expand is None else None
        mark = fingerprint([plan.fingerprint, PARTS_VERSION])
        size, segments = plan.unit_size(items.num_rows), 1 + len(this.segments)
        try:
            units = UnitPlan.create(self._folder, items, size, mark, together, number + 1, segments)
        except PlanMismatch as mismatch:
            if number == 0 or mismatch.changed != "inputs":
                raise
            # rows of an earlier pass were measured again, and others are still kept
            self.again.from_pass(number + 1)
            units = UnitPlan.create(self._folder, items, size, mark, together, number + 1, segments)
        self.again.unfinished(units)
        self._units.append(units)
        self._lanes = Lanes(self._folder, plan.config.pause)
        self._lanes.clear()
        self._tasks(number, units)
        if self._table is not None:
            self._take(number, units)
            for planned in this.sets:
                self._table.annotate(planned, this.of_patches)
                self._table.apply_rules(planned, this.of_patches, self._counts)

    def _tasks(self, number: int, units: UnitPlan) -> None:
        this = self._plan.passes[number]
        segments = [
            Segment(CurateWork(self._plan, self._source, number, self._keys), passes=self._view_bytes(this))
        ]
        for place, segment in enumerate(this.segments, 1):
            segments.append(self._segment(number, place, segment))
        shown = Tally.empty()
        for unit in sorted(units.complete()):
            shown = shown.plus(Tally.of_unit(units, unit))

        def note(unit: int) -> str:
            nonlocal shown
            shown = shown.plus(Tally.of_unit(units, unit))
            for lane, why in self._lanes.refresh():
                warn(
                    f"{lane} is paused, its other rows are left undone: most of its last rows failed ({why})"
                )
            return shown.summary()

        if isinstance(self._runner, InlineRunner) and number == 0:
            what = "an image that crashes its decoder, hangs or exhausts the memory ends the run"
            warn(f"in this process: {what}")
        name = "curate" if number == 0 else f"pass {number + 1}"
        with progress(name, units.rows, "images") as advance:
            if isinstance(self._runner, RayRunner):
                advance(0, "starting Ray")
            run_tasks(units, segments, self._runner, advance, note)
        if shown.undone:
            lanes = ", ".join(each.lane for each in self._lanes) or self._left(units)
            run = f"the run in {shown_place(self._folder)}"
            what = f"{run} is unfinished: {shown.undone:,} rows are left undone"
            fix = f"when {lanes} can be used, the same command goes on; with --set pause=0 they fail"
            raise Unfinished(f"{what} (paused: {lanes})", fix)
        self._tally = shown.after(self._tally) if number else shown

    def _left(self, units: UnitPlan) -> str:
        """Say for what rows were left undone, where the workers have folders of their own: they tell it by
        their rows alone.
        """
        reasons: dict[str, str] = {}
        for unit in range(units.count):
            for segment in range(units.segments):
                part = units.part(unit, segment)
                rows = parquet.read(part, ["status", "error"]).to_pylist() if part.exists() else []
                for row in rows:
                    lane, _, why = (row["error"] or "").partition(" is paused: ")
                    if row["status"] == UNDONE:
                        reasons.setdefault(lane, why)
        for lane, why in reasons.items():
            warn(f"{lane} was paused, its other rows are left undone: most of its last rows failed ({why})")
        return ", ".join(reasons)

    def _segment(self, number: int, place: int, segment: ModelSegment) -> Segment:
        resources = segment.resources
        return Segment(
            ScoreWork(self._plan, number, place, resources.num_gpus, self._keys),
            Limits(resources.seconds, int(resources.memory)),
            resources.actors,
            resources.num_cpus,
            resources.num_gpus,
            resources.accelerator_type,
            takes=bool(segment.views),
        )

    def _view_bytes(self, this: Pass) -> int:
        """The most bytes that the views of a unit usually take."""
        total = 0
        for view in this.views.values():
            side = view.shortest or (view.longest and view.longest / WIDEST_VIEW)
            pixels = side * side * WIDEST_VIEW if side else min(self._plan.config.limits.pixels, 50_000_000)
            total += int(pixels) * 3
        return total * self._plan.unit_size(0) if total else 0

    def _take(self, number: int, units: UnitPlan) -> None:
        """Put the rows of a pass into the table."""
        this, table = self._plan.passes[number], self._table
        assert table is not None
        schema = self._schema(number)
        if number == 0 and not this.segments:
            table.load_parts([units.part(unit) for unit in range(units.count)], schema)
        elif number == 0:
            table.load(schema, self._batches(number, units))
        elif this.expand is not None:
            table.add_patches(schema, self._batches(number, units))
        else:
            new = [column.name for column in this.columns((*this.frames, *this.batches))]
            table.merge(schema, self._batches(number, units), new)

    def _schema(self, number: int) -> pa.Schema:
        """Return the columns of the rows of a pass."""
        this = self._plan.passes[number]
        schema = frame_schema(self._plan, number)
        for column in this.columns(this.batches):
            schema = schema.append(column.field())
        return schema

    def _batches(self, number: int, units: UnitPlan) -> Iterator[pa.RecordBatch]:
        schema = self._schema(number)
        segments = 1 + len(self._plan.passes[number].segments)
        for unit in range(units.count):
            table = unit_rows(self._plan, units, number, unit, segments).select(schema.names)
            yield from table.cast(schema).to_batches()

    def finished(self) -> Finished:
        plan, table, tally, counts = self._plan, self._table, self._tally, self._counts
        seen, lost = tally.seen + Counter(counts.seen), tally.lost + Counter(counts.lost)
        if table is not None:
            return Finished(
                plan,
                self._source,
                lambda: table.batches(plan.schema),
                table.rows(),
                self._units,
                seen,
                lost,
                table.counts(),
                tally,
            )
        rejected = dict(tally.rejected)
        return Finished(
            plan,
            self._source,
            self._rows,
            self._units[0].rows,
            self._units,
            seen,
            lost,
            rejected,
            tally,
        )

    def _rows(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the only pass. They are sorted by uri, as units are cut from the sorted list."""
        units, names = self._units[0], self._plan.schema.names
        if self._plan.passes[0].segments:
            for batch in self._batches(0, units):
                yield batch.select(names)
            return
        for unit in range(units.count):
            yield from parquet.read(units.part(unit), names).to_batches()
