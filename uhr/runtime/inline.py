"""Run units one after the other in this process: for debugging, and if only one worker is possible."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from uhr.base.errors import UserError, one_line
from uhr.base.files import disk_fault
from uhr.runtime.schedule import Schedule
from uhr.runtime.units import Report, Segment, UnitPlan, Watch


class _Reporting(Watch):
    """Reports what is done of a task."""

    def __init__(self, report: Report, segment: int, unit: int) -> None:
        super().__init__()
        self._report, self._segment, self._unit = report, segment, unit

    def done(self, count: int) -> None:
        self._report(self._segment, self._unit, count)


class InlineRunner:
    """Runs units in this process, without limits: an item that crashes its decoder ends the run."""

    def run(self, plan: UnitPlan, segments: Sequence[Segment], report: Report) -> Iterator[tuple[int, int]]:
        at: int | None = None
        schedule = Schedule(plan, segments)
        opened: set[int] = set()
        try:
            while (task := schedule.last()) is not None:
                segment, unit, given = task
                work = segments[segment].work
                if segment not in opened:
                    at = None
                    work.open()
                    opened.add(segment)
                at = unit
                schedule.done(segment, unit, work.do(plan, unit, _Reporting(report, segment, unit), given))
                yield segment, unit
        except Exception as error:
            raise unit_error(error, at, plan.folder) from error


def unit_error(error: Exception, unit: int | None, folder: Path) -> UserError:
    """Turn what `TaskWork.open` (unit None) or `do` raised into one line with the unit and the source line.

    `folder` is the plan's, where parts are written.
    """
    if isinstance(error, UserError):
        return error
    if (reason := disk_fault(error)) is not None:
        fix = "free space there; the same command resumes the run"
        return UserError(f"{folder} cannot be written ({reason})", fix)
    where = "a worker could not start" if unit is None else f"unit {unit} failed"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename} line {frames[-1].lineno})" if frames else ""
    words = one_line(error)
    return UserError(
        f"{where}: {type(error).__name__}: {words}{place}", "--workers 0 --debug shows the whole trace"
    )
