"""Supervise one child process. All runners use it, so that faults have the same meaning on each.

An image that hangs, crashes or exhausts memory fails its row, not the run: the parent reads the item from the
shared page, kills the child, starts another, and repeats the unit with that item marked. If a batch of items
ended the child, the unit is repeated item by item, which shows the one at fault.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_any
from pathlib import Path

from uhr.base.errors import UserError
from uhr.base.formatting import human_bytes
from uhr.runtime.process import Child, ChildSetup, how_it_ended
from uhr.runtime.units import BATCH, CRASH, MEMORY_LIMIT, TIME_LIMIT, Limits, TaskWork, UnitFault, UnitPlan

POLL_SECONDS = 0.05
"""Interval at which a child's time and memory are checked."""


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def search_path() -> list[str]:
    """Return this process's module search path with absolute folders, on which a child finds user classes."""
    return [os.path.abspath(folder) for folder in sys.path]


class Worker:
    """One child process at a time, and the unit that it processes."""

    def __init__(
        self,
        plan: UnitPlan | tuple[Path, int],
        work: TaskWork | bytes,
        limits: Limits,
        setup: ChildSetup,
        child: Child | None = None,
    ) -> None:
        """`plan` is a plan, or its folder and number. `child` was started with the same `setup` and has no
        work yet. None: start one when needed.
        """
        folder, number = (plan.folder, plan.number) if isinstance(plan, UnitPlan) else plan
        packed = work if isinstance(work, bytes) else pickle.dumps(work)
        self._job = ((folder.absolute(), number), packed)
        self._limits = limits
        self._setup = setup
        self._child = child
        if child is not None:
            child.begin(*self._job)
        self.unit: int | None = None
        self.passed: bytes | None = None

    def assign(self, unit: int, given: bytes | None = None) -> None:
        """Send the child its next task; start a child if there is none. `given`: see `TaskWork.do`."""
        assert self.unit is None
        self.unit = unit
        self._given = given
        self.passed = None
        self._faults: dict[int, UnitFault] = {}
        self._deaths: Counter[int] = Counter()
        self._send()

    def check(self) -> int | None:
        """Return the unit if it is finished, else None. Call it repeatedly: it also enforces the limits.

        What the task passes on is in `passed`. Raises UserError if the work raised, or if the child died
        three times while it processed no item.
        """
        assert self.unit is not None
        child = self._child
        assert child is not None
        try:
            while child.connection.poll():
                kind, value = child.connection.recv()
                if kind == "error":
                    self.close()
                    what, fix, give, trace = value
                    error = UserError(what, fix, give)
                    error.add_note(trace)
                    raise error
                if kind == "give":
                    assert self._given is not None
                    child.connection.send_bytes(self._given)
                if kind == "done":
                    self.passed = child.connection.recv_bytes() if value else None
                    return self._finish(child)
        except (EOFError, ConnectionError):
            self._died(child)
            return None
        child.trim_log()
        too_large = child.rss() > self._limits.memory
        # an item that fills the memory may be slow because of it: the memory is the cause
        if too_large or child.seconds_on_item() > self._limits.seconds * child.items():
            self._kill(child, overdue=not too_large)
        return None

    @property
    def connection(self) -> Connection:
        """The connection that becomes readable when `check` should be called."""
        assert self._child is not None
        return self._child.connection

    @property
    def done(self) -> int:
        """How many items of its unit the child has reported as done."""
        return 0 if self._child is None else self._child.done()

    def finish(self) -> int:
        """Wait for the unit, and return its number."""
        while (unit := self.check()) is None:
            wait_any([self.connection], timeout=POLL_SECONDS)
        return unit

    def close(self) -> None:
        """Kill the child. Nothing of its unfinished unit is written."""
        if self._child is not None:
            self._child.kill()
        self._child = None
        self.unit = None

    def _send(self) -> None:
        if self._child is None:
            self._child = Child(self._setup)
            self._child.begin(*self._job)
        try:
            self._child.connection.send((self.unit, self._faults, self._given is not None))
        except (BrokenPipeError, ConnectionResetError):
            self._died(self._child)

    def _finish(self, child: Child) -> int | None:
        unit, self.unit, self._given = self.unit, None, None
        if child.rss() > self._limits.memory / 2:
            # the memory of earlier units must not count against the items of the next
            child.kill()
            self._child = None
        return unit

    def _kill(self, child: Child, overdue: bool) -> None:
        turn = child.turn()
        child.kill()
        if child.turn() == turn or not overdue:
            limit = f"{self._limits.seconds:g} s" if overdue else human_bytes(self._limits.memory)
            kind = TIME_LIMIT if overdue else MEMORY_LIMIT
            message = f"took longer than {limit}" if overdue else f"needed more than {limit} of memory"
            self._mark(child, kind, message, tries=1 if overdue else 2)
        self._child = None
        self._send()

    def _died(self, child: Child) -> None:
        code = child.kill()
        self._mark(child, CRASH, how_it_ended(code), tries=2)
        self._child = None
        self._send()

    def _mark(self, child: Child, kind: str, message: str, tries: int) -> None:
        """Mark the child's current item as faulty if it has ended `tries` children.

        The first death may have another cause (the system's out-of-memory killer, an operator, memory of
        earlier items). A second one, in a new process, is caused by the item. A batch is marked at once: from
        its step on, the unit is repeated item by item.
        """
        index, step = child.item()
        if index == BATCH:
            self._faults[BATCH] = UnitFault(kind, message, step)
            return
        self._deaths[index] += 1
        if index >= 0 and self._deaths[index] >= tries:
            self._faults[index] = UnitFault(kind, message, step)
        elif self._deaths[index] >= 3:
            tail = child.last_line()
            self.close()
            what = f"a worker process {message} three times while it processed no item"
            raise UserError(
                what + (f"; its last output: {tail}" if tail else ""), "--workers 0 --debug shows the trace"
            )
