"""The work on a unit of images: sidecars, header stages, pixel stages, and the rules between them.

An image is decoded once, and only if the rules over its header keep it. All pixel stages share its Frame,
which is freed before the next image is decoded. An error with an image becomes the verdict of its row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from uhr.curate.faults import CHANGED, STAGE_ERROR
from uhr.curate.planning.plan import CurationPlan, PlannedStage
from uhr.curate.rules import Judge, Rule
from uhr.curate.run.rows import UnitRows
from uhr.curate.stage import Stage
from uhr.manifests.sources.base import Source
from uhr.pixels.decoder_noise import stable_text
from uhr.pixels.types import Header, PixelFault
from uhr.runtime.units import UnitFault, Watch, Work

HELD_PIXELS = 10_000_000
"""Limit of the decoded pixels (12 bytes each) that are in memory while a rule between pixel stages is
evaluated. One query then covers many small images, or one 4K image.
"""

StageGroup = tuple[tuple[tuple[int, PlannedStage[Stage]], ...], tuple[Rule, ...]]
"""Consecutive stages, each with its step number for the watch, and the rules that follow the last of them."""


class CurateWork(Work):
    """Curates the units of a run. Picklable: it has the checked plan and the source."""

    def __init__(self, plan: CurationPlan, source: Source) -> None:
        self.plan = plan
        self.source = source

    def open(self) -> None:
        for planned in (*self.plan.header, *self.plan.pixel):
            planned.stage.open()
        self._judge = Judge(self.plan.schema)

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        unit = _UnitRun(self.plan, self._judge, UnitRows(self.plan, items, self.source), watch)
        unit.run()
        return unit.rows.part()


class _UnitRun:
    """One unit: `run` applies the plan to its images; `rows` collects columns and verdicts."""

    def __init__(self, plan: CurationPlan, judge: Judge, rows: UnitRows, watch: Watch) -> None:
        self._plan = plan
        self._judge = judge
        self._watch = watch
        self._headers: dict[int, Header] = {}
        self.rows = rows

    def run(self) -> None:
        alive = [index for index in self.rows.alive() if self._sidecars(index)]
        alive = self._apply_rules(self._plan.first, alive)
        self._watch.end()
        self.rows.prefetch(alive)
        for group in _stage_groups(self._plan.header, 1):
            alive = self._apply_rules(
                group[1], [i for i in alive if self._annotate(i, self._frame(i), group[0])]
            )
        self._pixels(alive)
        self._watch.end()

    def _pixels(self, alive: list[int]) -> None:
        groups = list(_stage_groups(self._plan.pixel, 1 + len(self._plan.header)))
        if len(groups) == 1:
            # rules only at the end: no decoded image has to be kept while they are evaluated
            stages, rules = groups[0]
            self._apply_rules(rules, [i for i in alive if self._annotate(i, self._frame(i), stages)])
            return
        for chunk in self._chunks(alive) if groups else ():
            frames = {index: self._frame(index) for index in chunk}
            for stages, rules in groups:
                chunk = self._apply_rules(rules, [i for i in chunk if self._annotate(i, frames[i], stages)])
                frames = {index: frames[index] for index in chunk}

    def _chunks(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Yield consecutive rows whose decoded images fit into memory together; single rows if their size is
        not known.
        """
        chunk: list[int] = []
        held = 0
        for index in indices:
            row = self.rows[index]
            pixels = (row.get("width") or HELD_PIXELS) * (row.get("height") or 1)
            if chunk and held + pixels > HELD_PIXELS:
                yield chunk
                chunk, held = [], 0
            chunk.append(index)
            held += pixels
        if chunk:
            yield chunk

    def _frame(self, index: int) -> Any:
        from uhr.curate.frame import Frame

        row = self.rows[index]
        known = self._headers.get(index)
        return Frame(row["uri"], self.rows.open(index), row, self._plan.config.limits, known)

    def _sidecars(self, index: int) -> bool:
        """Read the sidecars of one image; return False if the image failed."""
        label = "sidecars"
        if not self._begin(index, 0, label):
            return False
        try:
            self.rows.read_sidecars(index, self._plan.config.sidecars)
        except PixelFault as fault:
            self.rows.fail(index, fault.kind, f"{label}: {fault.message}")
            return False
        return True

    def _begin(self, index: int, number: int, label: str) -> bool:
        """Announce the next step of an image to the watch. If the image ended an earlier attempt in this
        step, fail its row and return False.
        """
        fault = self._watch.begin(index, number)
        if fault is None:
            return True
        self.rows.fail(index, fault.kind, f"{label}: {fault.message}")
        return False

    def _annotate(self, index: int, frame: Any, stages: Sequence[tuple[int, PlannedStage[Stage]]]) -> bool:
        """Add the columns of these stages for one image; return False if it failed."""
        label = ""
        try:
            for number, planned in stages:
                label = planned.label
                if not self._begin(index, number, label):
                    return False
                self.rows.put(index, planned, planned.stage.annotate(frame))
                if self._plan.config.preview and number == 1 + len(self._plan.header):
                    # right after the first pixel stage, so that images which later rules reject have one too
                    label = f"{planned.label}: preview"
                    self.rows.put_preview(index, *frame.preview(self._plan.config.preview))
            frame.check_unchanged()
            if frame.known is not None:
                self._headers[index] = frame.known
        except PixelFault as fault:
            self._fail(index, frame, label, fault)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stage may do anything: it costs this row only
            text = stable_text(str(error))
            message = f"{type(error).__name__}{': ' if text else ''}{text}"
            self._fail(index, frame, label, UnitFault(STAGE_ERROR, message))
        else:
            return True
        return False

    def _fail(self, index: int, frame: Any, label: str, fault: PixelFault | UnitFault) -> None:
        """Fail a row; as "changed" if the file has changed, as the stage may have opened it itself."""
        try:
            frame.check_unchanged()
        except PixelFault as found:
            fault = found if found.kind == CHANGED else fault
        self.rows.fail(index, fault.kind, f"{label}: {fault.message}")

    def _apply_rules(self, rules: Sequence[Rule], indices: list[int]) -> list[int]:
        """Evaluate the rules for these rows, and return the rows for which all are true."""
        if not rules:
            return indices
        self._watch.end()
        verdicts = self._judge.verdicts(rules, [self.rows[i] for i in indices], self.rows.seen)
        for index, verdict in zip(indices, verdicts, strict=True):
            if verdict is not None:
                self.rows.decide(index, verdict)
        return [i for i, verdict in zip(indices, verdicts, strict=True) if verdict is None]


def _stage_groups(stages: Sequence[PlannedStage[Stage]], first: int) -> Iterator[StageGroup]:
    """Group stages so that each group ends where rules are evaluated. Stages are numbered from `first`."""
    run: list[tuple[int, PlannedStage[Stage]]] = []
    for number, planned in enumerate(stages, first):
        run.append((number, planned))
        if planned.rules:
            yield tuple(run), planned.rules
            run = []
    if run:
        yield tuple(run), ()
