"""The parent's side of one killable child: what every runner uses, so that a fault means the same on each.

An image that hangs, crashes or eats memory costs its row, not the run: the parent sees it in the shared
page, kills the child, starts another, and does the unit again with that item marked.
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
from uhr.base.files import human_bytes
from uhr.runtime.process import Child, Surroundings, how_it_ended
from uhr.runtime.units import CRASH, MEMORY_LIMIT, TIME_LIMIT, Limits, UnitFault, Work

POLL_SECONDS = 0.05
"""How often a child's time and memory are looked at."""


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def search_path() -> list[str]:
    """This process's module search path with absolute folders: what a user's own class is found on in a
    child.
    """
    return [os.path.abspath(folder) for folder in sys.path]


class Worker:
    """One child process at a time, and the unit that it is at."""

    def __init__(
        self,
        folder: Path,
        work: Work | bytes,
        limits: Limits,
        around: Surroundings,
        child: Child | None = None,
    ) -> None:
        """`child`: one that is started already, in these surroundings, and has nothing to do yet."""
        self._order = (folder.absolute(), work if isinstance(work, bytes) else pickle.dumps(work))
        self._limits = limits
        self._around = around
        self._child = child
        if child is not None:
            child.begin(*self._order)
        self.unit: int | None = None

    def assign(self, unit: int) -> None:
        """Give the child its next unit; starts a child where there is none."""
        assert self.unit is None
        self.unit = unit
        self._faults: dict[int, UnitFault] = {}
        self._deaths: Counter[int] = Counter()
        self._send()

    def check(self) -> int | None:
        """The unit, once it is finished. Called again and again: this is also where limits are kept.

        Errors: what the work raised, or a child that keeps dying while it touches no item.
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
                if kind == "done":
                    return self._finish(child)
        except (EOFError, ConnectionResetError):
            self._died(child)
            return None
        child.trim_log()
        overdue = child.seconds_on_item() > self._limits.seconds
        if overdue or child.rss() > self._limits.memory:
            self._kill(child, overdue)
        return None

    @property
    def connection(self) -> Connection:
        """What becomes ready when `check` has news."""
        assert self._child is not None
        return self._child.connection

    def finish(self) -> int:
        """Wait for the unit."""
        while (unit := self.check()) is None:
            wait_any([self.connection], timeout=POLL_SECONDS)
        return unit

    def close(self) -> None:
        """End the child, at once; its unfinished unit leaves nothing behind."""
        if self._child is not None:
            self._child.kill()
        self._child = None
        self.unit = None

    def _send(self) -> None:
        if self._child is None:
            self._child = Child(self._around)
            self._child.begin(*self._order)
        try:
            self._child.connection.send((self.unit, self._faults))
        except (BrokenPipeError, ConnectionResetError):
            self._died(self._child)

    def _finish(self, child: Child) -> int | None:
        unit, self.unit = self.unit, None
        if child.rss() > self._limits.memory / 2:
            # what earlier units left behind must not count against the next one's items
            child.kill()
            self._child = None
        return unit

    def _kill(self, child: Child, overdue: bool) -> None:
        turn = child.turn()
        child.kill()
        if child.turn() == turn or not overdue:
            limit = f"{self._limits.seconds:g} s" if overdue else human_bytes(self._limits.memory)
            kind = TIME_LIMIT if overdue else MEMORY_LIMIT
            words = f"took longer than {limit}" if overdue else f"needed more than {limit} of memory"
            self._blame(child, kind, words, tries=1 if overdue else 2)
        self._child = None
        self._send()

    def _died(self, child: Child) -> None:
        code = child.kill()
        self._blame(child, CRASH, how_it_ended(code), tries=2)
        self._child = None
        self._send()

    def _blame(self, child: Child, kind: str, words: str, tries: int) -> None:
        """Mark the item that the child was at when it has ended `tries` children.

        One death may have come from outside (the system's memory killer, an operator), or from what earlier
        items left behind: the second one, in a fresh process, is the item's own.
        """
        index, step = child.item()
        self._deaths[index] += 1
        if index >= 0 and self._deaths[index] >= tries:
            self._faults[index] = UnitFault(kind, words, step)
        elif self._deaths[index] >= 3:
            tail = child.last_words()
            self.close()
            words = f"a worker process {words} three times while it touched no item"
            raise UserError(
                words + (f"; it said: {tail}" if tail else ""), "--workers 0 --debug shows the trace"
            )
