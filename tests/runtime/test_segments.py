"""Segments: tasks of a unit follow each other, pass data on in memory, and are redone alone if missing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from uhr.base import parquet
from uhr.base.errors import UserError
from uhr.runtime.pool import InlineRunner, LocalRunner, RayRunner
from uhr.runtime.schedule import Schedule
from uhr.runtime.units import NO_LIMITS, Segment, UnitPlan, run_tasks

HERE = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("warm_curation_workers")


@pytest.fixture(autouse=True)
def works(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(HERE))
    import unit_works

    return unit_works


def plan_of(folder: Path, rows: int = 11, number: int = 1) -> UnitPlan:
    return UnitPlan.create(folder, pa.table({"x": list(range(rows))}), 3, "work", number=number)


def segments_of(works, fatal: int = -1) -> list[Segment]:
    last = Segment(works.AddsOne(2), workers=(1, 1), takes=True)
    return [
        Segment(works.Doubles(), passes=1000),
        Segment(works.AddsOne(1, fatal), workers=(1, 2), cpus=0.5, takes=True),
        last,
    ]


def column(plan: UnitPlan, segment: int, name: str) -> list[int]:
    parts = [parquet.read(plan.part(unit, segment)) for unit in range(plan.count)]
    return pa.concat_tables(parts)[name].to_pylist()


def do(plan: UnitPlan, segments: list[Segment], runner) -> list[int]:
    heard: list[int] = []
    run_tasks(plan, segments, runner, lambda n=1, note=None: heard.append(n))
    return heard


def test_each_task_follows_the_one_before_and_a_missing_part_is_made_alone(tmp_path, works):
    plan = plan_of(tmp_path)
    assert sum(do(plan, segments_of(works), InlineRunner())) == 11
    expected = [2 * x + 1 for x in range(11)]
    assert column(plan, 1, "added") == column(plan, 2, "added") == expected
    before = {segment: plan.part(1, segment).stat().st_mtime_ns for segment in (0, 1)}
    plan.part(1, 2).unlink()
    plan.part(3, 1).unlink()
    assert do(plan, segments_of(works), LocalRunner(1, NO_LIMITS))[0] == 6, "two units were finished"
    assert {segment: plan.part(1, segment).stat().st_mtime_ns for segment in (0, 1)} == before
    assert column(plan, 1, "added") == column(plan, 2, "added") == expected


def test_two_plans_of_one_folder_keep_their_items_and_parts_apart(tmp_path, works):
    one, two = plan_of(tmp_path), plan_of(tmp_path, 4, number=2)
    do(two, segments_of(works), InlineRunner())
    assert one.finished() == set()
    assert two.finished(2) == {0, 1}
    assert UnitPlan.open(tmp_path, 2) == two
    assert UnitPlan.open(tmp_path) == one


@pytest.mark.ray
def test_the_row_that_kills_its_worker_in_a_batch_is_found_on_both_engines(tmp_path, works):
    expected = [2 * x + 1 if x != 4 else -1 for x in range(11)]
    for name, runner in (("local", LocalRunner(1, NO_LIMITS)), ("ray", RayRunner(1, NO_LIMITS))):
        plan = plan_of(tmp_path / name)
        do(plan, segments_of(works, fatal=8), runner)
        assert column(plan, 1, "added") == expected, name
        assert column(plan, 2, "added") == [2 * x + 1 for x in range(11)], name


def test_the_first_segment_waits_while_too_much_is_held(tmp_path, works):
    schedule = Schedule(plan_of(tmp_path), segments_of(works), capacity=2)
    for unit in (0, 1):
        assert schedule.take(0) == (unit, None)
        schedule.done(0, unit, b"held")
    assert schedule.take(0) is None
    assert schedule.take(1) == (0, b"held")
    schedule.done(1, 0)
    assert schedule.take(0) is None, "the last segment still needs it"
    assert schedule.take(2) == (0, b"held")
    schedule.done(2, 0)
    assert schedule.take(0) == (2, None)
    assert schedule.left == 3


def test_a_task_lost_with_its_worker_begins_where_its_data_come_from(tmp_path, works):
    schedule = Schedule(plan_of(tmp_path), segments_of(works), capacity=9)
    schedule.take(0)
    schedule.done(0, 0, b"held")
    assert schedule.take(1) == (0, b"held")
    schedule.again(0)
    assert schedule.take(1) is None
    assert schedule.take(0) == (0, None), "what was passed on is made again"


def test_pools_that_do_not_fit_fail_in_one_line(works):
    runner = RayRunner(None, NO_LIMITS, address="auto")
    models = [Segment(works.Doubles()), Segment(works.AddsOne(1), workers=(2, 4), cpus=2, gpus=0.5)]
    assert runner._counts(models, 8, 1, 100) == [(3, 3), (2, 4)]
    with pytest.raises(UserError, match=r"1 workers and 2 actors .* need 6 CPUs and 1 GPUs .* has 5 and 1"):
        runner._counts(models, 5, 1, 100)
    with pytest.raises(UserError, match=r"need 10 CPUs and 1 GPUs and the Ray cluster has 10 and 0"):
        runner._counts(models, 10, 0, 100)
    local = LocalRunner(1, NO_LIMITS)
    local._own_gpus = ("0",)
    with pytest.raises(UserError, match="2 workers need 4 GPUs and this machine has 1"):
        local._most(Segment(works.AddsOne(1), workers=(2, 4), gpus=2))
    half = Segment(works.AddsOne(1), workers=(1, 4), gpus=0.5)
    assert local._most(half) == 2
    assert local._most(Segment(works.AddsOne(1), workers=(1, 4), gpus=None)) == 1
    assert local._setup(1, (), half).environment == {"CUDA_VISIBLE_DEVICES": "0"}
