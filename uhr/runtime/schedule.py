"""Which task comes next: tasks of one unit in order, and a bound on what they pass on in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from uhr.runtime.units import Segment, UnitPlan


class Schedule:
    """The tasks of a plan that have no part yet, in the order in which they can be done.

    Args:
        plan: the units.
        segments: what each unit passes through, in order: a task for each.
        capacity: how many results of the first segment may be in memory, passed on but not yet used up;
            beyond that the first segment pauses.

    What a task passes on is only in memory. After a restart, or when a worker is lost, a unit whose later
    tasks need it begins with the first segment again. That task finds its part already written, and only
    passes its result on.
    """

    def __init__(self, plan: UnitPlan, segments: Sequence[Segment], capacity: int = 1) -> None:
        self.capacity = capacity
        self._segments = segments
        self._ready: list[deque[int]] = [deque() for _ in segments]
        self._missing: dict[int, list[int]] = {}
        self._passed: dict[int, Any] = {}
        done = [plan.finished(number) for number in range(len(segments))]
        for unit in range(plan.count):
            missing = [number for number, finished in enumerate(done) if unit not in finished]
            if missing:
                self._missing[unit] = missing
                self._ready[self._first(unit)].append(unit)

    @property
    def left(self) -> int:
        """The number of units that are not finished."""
        return len(self._missing)

    def waiting(self, segment: int) -> int:
        """The number of tasks of a segment that could be done now."""
        return len(self._ready[segment])

    def take(self, segment: int) -> tuple[int, Any] | None:
        """Return the next unit for a free worker of a segment, and what the first segment passed on for it;
        None if there is no task now."""
        ready = self._ready[segment]
        if not ready or (segment == 0 and len(self._passed) >= self.capacity):
            return None
        unit = ready.popleft()
        return unit, self._passed.get(unit) if self._segments[segment].takes else None

    def last(self) -> tuple[int, int, Any] | None:
        """Take a task of the last segment that has one: segment, unit, and what was passed on. None if there
        is no task now."""
        for segment in reversed(range(len(self._segments))):
            if (task := self.take(segment)) is not None:
                return segment, *task
        return None

    def done(self, segment: int, unit: int, passed: Any = None) -> None:
        """Record that a unit's task of a segment is done. passed: what it passes on to later segments."""
        missing = self._missing[unit]
        if segment in missing:
            missing.remove(segment)
        if segment == 0 and passed is not None and any(self._segments[number].takes for number in missing):
            self._passed[unit] = passed
        if not any(self._segments[number].takes for number in missing):
            self._passed.pop(unit, None)
        if missing:
            self._ready[missing[0]].append(unit)
        else:
            del self._missing[unit]

    def again(self, unit: int) -> None:
        """Queue a unit again whose worker was lost, and with it what had been passed on."""
        self._passed.pop(unit, None)
        self._ready[self._first(unit)].appendleft(unit)

    def _first(self, unit: int) -> int:
        """The segment with which a unit begins when nothing has been passed on for it."""
        missing = self._missing[unit]
        return 0 if any(self._segments[number].takes for number in missing) else missing[0]
