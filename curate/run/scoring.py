"""The work of a model on a unit: batches of the rows that are still kept, and the rules after each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from uhr.curate.faults import OF_STAGE, stage_fault
from uhr.curate.planning.machine import MachineWork
from uhr.curate.planning.plan import CurationPlan
from uhr.curate.planning.planned import PlannedStage
from uhr.curate.rules import Judge
from uhr.curate.run.earlier.known import Earlier
from uhr.curate.run.earlier.rows import EarlierRows, StageKeys
from uhr.curate.run.lanes import Lanes, stage_lane
from uhr.curate.run.parts import segment_schema, unit_rows
from uhr.curate.run.rows import UnitRows
from uhr.curate.run.views import ViewReader
from uhr.curate.stage import BatchStage
from uhr.manifests.schema import KEPT
from uhr.runtime.units import MEMORY_LIMIT, UnitFault, UnitPlan, Watch


class ScoreWork(MachineWork):
    """A segment of models, the `segment`th task of a unit of a pass. Picklable: the model is loaded by
    `open`.
    """

    def __init__(
        self, plan: CurationPlan, number: int, segment: int, gpus: float | None, keys: StageKeys
    ) -> None:
        super().__init__(plan.passes[number].segments[segment - 1].stages, None)
        self.plan = plan
        self.number = number
        self.segment = segment
        self.gpus = gpus
        self.keys = keys

    def open(self) -> None:
        super().open()
        self._views = list(self.plan.passes[self.number].views)
        self._judge = Judge(self.plan.schema, self.plan.channels, self.plan.config.all_rules)
        self._opened: set[str] = set()
        self._earlier: Earlier | None = None

    def _open(self, planned: PlannedStage[BatchStage]) -> None:
        """Load a model before its first row: where all results are known, it is not needed at all."""
        if planned.label not in self._opened:
            planned.stage.open(self._device())
            self._opened.add(planned.label)

    def _device(self) -> str:
        if self.gpus == 0:
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def do(self, plan: UnitPlan, unit: int, watch: Watch, given: bytes | None) -> bytes | None:
        table = unit_rows(self.plan, plan, self.number, unit, self.segment)
        rows = UnitRows(self._rows(table, plan, unit))
        views = None if given is None else ViewReader(given, self._views)
        if self._earlier is None:
            self._earlier = Earlier(plan.folder, fetched=False)
            self._lanes = Lanes(plan.folder, self.plan.config.pause)
        self._lanes.begin()
        earlier = EarlierRows(self._earlier, self.keys, set())
        batch = _Batches(rows, watch, views, self._lanes)
        for step, planned in enumerate(self.stages):
            alive = [i for i in rows.alive() if planned.sees(rows[i])]
            alive = [i for i in alive if not _reuse(rows, i, planned, earlier)]
            if alive:
                self._open(planned)
            batch.score(planned, step, batch.with_views(planned, alive))
            watch.end()
            rows.rule(self._judge, planned.rules, rows.alive())
        schema = segment_schema(self.plan, self.number, self.segment)
        plan.write(unit, rows.part(schema, self.plan.channels, previews=False), self.segment)
        self._lanes.end()
        return None

    def _rows(self, table: pa.Table, plan: UnitPlan, unit: int) -> list[dict[str, Any]]:
        """Return the rows; those that are still kept have no verdict yet. In a later pass they also have the
        columns of their items; an image whose patches were cut is not scored with them."""
        rows = table.to_pylist()
        this = self.plan.passes[self.number]
        if self.number and this.expand is None:
            items = plan.items(unit).to_pylist()
            rows = [item | row for item, row in zip(items, rows, strict=True)]
        for row in rows:
            is_patch = this.expand is None or row["parent_id"] is not None
            if row["status"] == KEPT and is_patch:
                row["status"] = None
        return rows


def _reuse(rows: UnitRows, index: int, planned: PlannedStage[BatchStage], earlier: EarlierRows) -> bool:
    """Take over what an earlier run has of a stage for a row; return False if there is nothing."""
    answer = earlier.answer(index, rows[index], planned)
    if answer is None:
        return False
    if answer.fault is None:
        rows.take_over(index, planned, answer.values)
    else:
        rows.reused[planned.label] += 1
        rows.fail(index, answer.fault.kind, f"{planned.label}: {answer.fault.message}")
    return True


class _Batches:
    """Scores rows in batches, in smaller ones if the memory does not suffice, and one by one to find a row at
    fault."""

    def __init__(self, rows: UnitRows, watch: Watch, views: ViewReader | None, lanes: Lanes) -> None:
        self._lanes = lanes
        self._rows = rows
        self._watch = watch
        self._views = views

    def with_views(self, planned: PlannedStage[BatchStage], indices: Sequence[int]) -> list[int]:
        """Return the rows whose views exist; fail the others."""
        if not planned.stage.views:
            return list(indices)
        assert self._views is not None
        found = []
        for index in indices:
            fault = self._views.fault(index)
            if fault is None:
                found.append(index)
            else:
                self._rows.fail(index, fault.kind, f"views: {fault.message}")
        return found

    def score(self, planned: PlannedStage[BatchStage], step: int, indices: Sequence[int]) -> None:
        """Add the columns of a stage to these rows, or fail them, or leave them undone."""
        size = planned.stage.resources.batch_size
        for start in range(0, len(indices), size):
            self._batch(planned, step, indices[start : start + size])

    def _batch(self, planned: PlannedStage[BatchStage], step: int, batch: Sequence[int]) -> None:
        lane = stage_lane(planned.label)
        if (why := self._lanes.paused(lane)) is not None:
            for index in batch:
                self._rows.leave(index, why)
            return
        if len(batch) > 1 and self._watch.batch(len(batch), step):
            try:
                self._put(planned, batch, self._scores(planned, batch))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - the rows of the batch are tried again
                half = len(batch) // 2 if is_out_of_memory(error) else 1
            else:
                self._lanes.succeeded(lane)
                return
            # outside of the except clause: the error holds tensors of the batch
            _free_memory()
            for start in range(0, len(batch), half):
                self._batch(planned, step, batch[start : start + half])
            return
        if len(batch) > 1:
            # such a batch ended its worker
            for index in batch:
                self._batch(planned, step, [index])
            return
        self._single(planned, step, batch[0])

    def _single(self, planned: PlannedStage[BatchStage], step: int, index: int) -> None:
        fault = self._watch.begin(index, step)
        if fault is None:
            try:
                self._put(planned, [index], self._scores(planned, [index]))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a stage may do anything: it costs this row only
                fault = _fault_of(error)
        if fault is None:
            self._lanes.succeeded(stage_lane(planned.label))
            return
        self._rows.fail(index, fault.kind, f"{planned.label}: {fault.message}")
        if fault.kind in OF_STAGE:
            self._lanes.failed(stage_lane(planned.label), f"{fault.kind}, {fault.message}")

    def _scores(self, planned: PlannedStage[BatchStage], batch: Sequence[int]) -> Mapping[str, Sequence[Any]]:
        views: dict[str, list[Any]] = {}
        for name, view in planned.stage.views.items():
            assert self._views is not None
            views[name] = [self._views.tensor(index, repr(view)) for index in batch]
        with self._rows.timed(planned.label, len(batch)):
            found = planned.stage.score([self._rows[index] for index in batch], views)
        if not isinstance(found, Mapping):
            raise TypeError(f"score gives {type(found).__name__}, not a mapping of its columns")
        for name, values in found.items():
            if len(values) != len(batch):
                raise ValueError(f"score gives {len(values)} values of column {name!r} for {len(batch)} rows")
        return found

    def _put(
        self,
        planned: PlannedStage[BatchStage],
        batch: Sequence[int],
        scores: Mapping[str, Sequence[Any]],
    ) -> None:
        for place, index in enumerate(batch):
            self._rows.put(index, planned, {name: values[place] for name, values in scores.items()})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of the GPU does not suffice."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _fault_of(error: BaseException) -> UnitFault:
    if is_out_of_memory(error):
        return UnitFault(MEMORY_LIMIT, "the model ran out of memory with this image alone")
    return stage_fault(error)


def _free_memory() -> None:
    """Return the memory that torch keeps of a failed batch."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
