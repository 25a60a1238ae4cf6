"""What a worker does to a unit of images: header stages, rules, then pixel stages on one Frame, rules
again.

An image is decoded once, after everything that its header can settle, and its Frame is dropped before the
next one's. Whatever goes wrong with an image becomes its row's verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from uhr.base.stable_text import stable_text
from uhr.curate.faults import CHANGED, STAGE_ERROR
from uhr.curate.planning.plan import Plan, Step
from uhr.curate.rows import Rows
from uhr.curate.rules import Judge, Rule
from uhr.curate.stage import Stage
from uhr.pixels.types import Header, PixelFault
from uhr.runtime.units import Fault, Watch, Work

HELD_PIXELS = 10_000_000
"""Pixels of images that are held at once while rules are asked between pixel stages (12 bytes each): enough
to ask about many small ones in one query, and about a 4K image by itself.
"""

Segment = tuple[tuple[tuple[int, Step[Stage]], ...], tuple[Rule, ...]]
"""Consecutive steps, each with its number for the watch, and the rules that fire after the last of them."""


class CurateWork(Work):
    """Picklable: the checked plan and the source root."""

    def __init__(self, plan: Plan, root: str) -> None:
        self.plan = plan
        self.root = root

    def open(self) -> None:
        for step in (*self.plan.header, *self.plan.pixel):
            step.stage.open()
        self._judge = Judge(self.plan.schema)

    def run(self, items: pa.Table, watch: Watch) -> pa.Table:
        unit = _Unit(self.plan, self._judge, Rows(self.plan, items, self.root), watch)
        unit.run()
        return unit.rows.part()


class _Unit:
    """One unit on its way through the plan; `rows` collects columns and verdicts."""

    def __init__(self, plan: Plan, judge: Judge, rows: Rows, watch: Watch) -> None:
        self._plan = plan
        self._judge = judge
        self._watch = watch
        self._headers: dict[int, Header] = {}
        self.rows = rows

    def run(self) -> None:
        alive = [index for index in self.rows.alive() if self._sidecars(index)]
        alive = self._ask(self._plan.first, alive)
        for segment in _segments(self._plan.header, 1):
            alive = self._ask(segment[1], [i for i in alive if self._annotate(i, self._frame(i), segment[0])])
        self._pixels(alive)
        self._watch.end()

    def _pixels(self, alive: list[int]) -> None:
        segments = list(_segments(self._plan.pixel, 1 + len(self._plan.header)))
        if len(segments) == 1:
            # rules only at the end: nothing has to be held while they are asked
            steps, rules = segments[0]
            self._ask(rules, [i for i in alive if self._annotate(i, self._frame(i), steps)])
            return
        for chunk in self._chunks(alive) if segments else ():
            frames = {index: self._frame(index) for index in chunk}
            for steps, rules in segments:
                chunk = self._ask(rules, [i for i in chunk if self._annotate(i, frames[i], steps)])
                frames = {index: frames[index] for index in chunk}

    def _chunks(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Runs of rows whose decoded images fit into memory together; one by one where the size is not
        known.
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
        return Frame(row["uri"], self.rows.path(index), row, self._plan.config.limits, known)

    def _sidecars(self, index: int) -> bool:
        """Read the sidecars of one image; False where it failed."""
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
        """False where this image ended an earlier try in this step: its row has failed now."""
        fault = self._watch.begin(index, number)
        if fault is None:
            return True
        self.rows.fail(index, fault.kind, f"{label}: {fault.message}")
        return False

    def _annotate(self, index: int, frame: Any, steps: Sequence[tuple[int, Step[Stage]]]) -> bool:
        """The columns of these stages for one image; False where it failed."""
        label = ""
        try:
            for number, step in steps:
                label = step.label
                if not self._begin(index, number, label):
                    return False
                self.rows.put(index, step, step.stage.annotate(frame))
                if self._plan.config.preview and number == 1 + len(self._plan.header):
                    # right after the first pixel stage: what a later rule turns down is shown as well
                    label = f"{step.label}: preview"
                    self.rows.put_preview(index, *frame.preview(self._plan.config.preview))
            frame.check_unchanged()
            if frame.known is not None:
                self._headers[index] = frame.known
        except PixelFault as fault:
            self._fail(index, frame, label, fault)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stage may do anything: it costs this row only
            words = stable_text(str(error))
            message = f"{type(error).__name__}{': ' if words else ''}{words}"
            self._fail(index, frame, label, Fault(STAGE_ERROR, message))
        else:
            return True
        return False

    def _fail(self, index: int, frame: Any, label: str, fault: PixelFault | Fault) -> None:
        """Fail a row, as "changed" where that is why a stage failed: it may have opened the file itself."""
        try:
            frame.check_unchanged()
        except PixelFault as found:
            fault = found if found.kind == CHANGED else fault
        self.rows.fail(index, fault.kind, f"{label}: {fault.message}")

    def _ask(self, rules: Sequence[Rule], indices: list[int]) -> list[int]:
        """The rows that all rules let through."""
        if not rules:
            return indices
        self._watch.end()
        verdicts = self._judge.verdicts(rules, [self.rows[i] for i in indices], self.rows.seen)
        for index, verdict in zip(indices, verdicts, strict=True):
            if verdict is not None:
                self.rows.decide(index, verdict)
        return [i for i, verdict in zip(indices, verdicts, strict=True) if verdict is None]


def _segments(steps: Sequence[Step[Stage]], first: int) -> Iterator[Segment]:
    """Steps cut where rules fire; numbered from `first`."""
    run: list[tuple[int, Step[Stage]]] = []
    for number, step in enumerate(steps, first):
        run.append((number, step))
        if step.rules:
            yield tuple(run), step.rules
            run = []
    if run:
        yield tuple(run), ()
