"""The pace of a run, from the times at which its parts were written."""

from __future__ import annotations

import os

import pyarrow as pa
import pytest

from uhr.curate.run import status
from uhr.runtime.units import UnitPlan


@pytest.fixture
def plan(tmp_path) -> UnitPlan:
    """Ten units of four rows."""
    return UnitPlan.create(tmp_path, pa.table({"x": list(range(40))}), 4, "work")


def finish(plan: UnitPlan, *times: float) -> None:
    for unit, time in enumerate(times):
        plan.write(unit, plan.items(unit))
        os.utime(plan.part(unit), (time, time))


def test_rate_and_time_left_are_those_of_the_newest_parts(plan):
    # an earlier attempt, hours before, says nothing about the rate of this one
    finish(plan, 1000.0, 20_000.0, 20_010.0, 20_020.0)
    found = status._pace(plan, 0, plan.finished(0), running=True)
    assert found == {"tasks": 4, "rows": 16, "rows_per_minute": 24.0, "seconds_left": 60}
    assert status._pace(plan, 0, plan.finished(0), running=False)["seconds_left"] is None


@pytest.mark.parametrize("times", [(), (5.0,), (5.0, 5.0)], ids=["none", "one", "at once"])
def test_of_too_few_parts_there_is_no_rate(plan, times):
    finish(plan, *times)
    found = status._pace(plan, 0, plan.finished(0), running=True)
    assert (found["rows_per_minute"], found["seconds_left"]) == (None, None)
    assert found["rows"] == 4 * len(times)
