"""Units: cut once, whole or absent, never done twice; and a bad item fails alone."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uhr.base.arrow import table_hash
from uhr.base.errors import UserError
from uhr.runtime.pool import InlineRunner, LocalRunner, RayRunner
from uhr.runtime.ray import UnitActor
from uhr.runtime.units import NO_LIMITS, Limits, PlanMismatch, Runner, UnitPlan, Work, run_units
from uhr.runtime.worker import cores, search_path

HERE = Path(__file__).parent
LIMITS = Limits(seconds=20, memory=700 * 2**20)
"""Generous: a harmless item must not run into it on a busy machine."""
SHORT = Limits(seconds=10, memory=700 * 2**20)


@pytest.fixture(autouse=True)
def works(monkeypatch: pytest.MonkeyPatch):
    """The module of works, on the search path of this process and so of its children."""
    monkeypatch.syspath_prepend(str(HERE))
    import unit_works

    return unit_works


def silent(n: int = 1, note: str | None = None) -> None:
    pass


def do(plan: UnitPlan, work: Work, runner: Runner) -> list[dict]:
    run_units(plan, work, runner, silent)
    return [row for unit in range(plan.count) for row in pq.read_table(plan.part(unit)).to_pylist()]


def numbers(folder: Path, rows: int, size: int) -> UnitPlan:
    return UnitPlan.create(folder, pa.table({"x": list(range(rows))}), size, "square")


@given(rows=st.integers(0, 200), size=st.integers(1, 64))
def test_every_item_is_in_exactly_one_unit_and_in_order(tmp_path_factory, rows, size):
    plan = numbers(tmp_path_factory.mktemp("plan"), rows, size)
    again = UnitPlan.open(plan.folder)
    assert again == plan
    units = [again.items(unit)["x"].to_pylist() for unit in range(again.count)]
    assert [x for unit in units for x in unit] == list(range(rows))
    assert [len(unit) for unit in units] == [again.rows_in(unit) for unit in range(again.count)]


def test_neighbours_of_one_value_are_in_one_unit(tmp_path):
    rng = random.Random(0)
    for number in range(200):
        values = [rng.randrange(4) for _ in range(rng.randrange(1, 40))]
        size = rng.randrange(1, 9)
        folder = tmp_path / str(number)
        plan = UnitPlan.create(folder, pa.table({"value": values}), size, "work", together="value")
        assert UnitPlan.open(folder) == plan
        units = [plan.items(unit)["value"].to_pylist() for unit in range(plan.count)]
        assert list(itertools.chain(*units)) == values
        assert [plan.rows_in(unit) for unit in range(plan.count)] == list(map(len, units))
        assert all(len(unit) <= size or len(set(unit)) == 1 for unit in units)
        for one, two in itertools.pairwise(units):
            assert one[-1] != two[0]
            # no unit is smaller than it must be
            (first, group) = next(itertools.groupby(two))
            assert len(one) + len(list(group)) > size, (first, one, two)


@given(
    values=st.lists(st.tuples(st.none() | st.text(), st.none() | st.lists(st.text(max_size=3))), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
def test_the_hash_of_items_does_not_depend_on_their_chunks(values, cuts):
    schema = pa.schema([("a", pa.string()), ("b", pa.list_(pa.string()))])
    table = pa.Table.from_pylist([dict(zip("ab", v, strict=True)) for v in values], schema=schema)
    edges = sorted({0, table.num_rows, *(min(cut, table.num_rows) for cut in cuts)})
    pieces = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    assert table_hash(pa.concat_tables(pieces) if pieces else table) == table_hash(table)


def test_the_hash_of_items_differs_for_every_change():
    base = {"a": ["x", None], "b": ["y", "z"]}
    changed = [{"a": ["x", ""], "b": ["y", "z"]}, {"a": [None, "x"], "b": ["y", "z"]}, {"b": ["y", "z"]}]
    hashes = [table_hash(pa.table(columns)) for columns in [base, *changed]]
    assert len(set(hashes)) == len(hashes)


def test_a_plan_is_the_same_for_the_same_items_and_work(tmp_path):
    plan = numbers(tmp_path, 10, 3)
    items = pa.table({"x": list(range(10))})
    assert UnitPlan.create(tmp_path, items, 5, "square") == plan, "the size was decided when the plan was cut"
    with pytest.raises(PlanMismatch) as inputs:
        UnitPlan.create(tmp_path, items.slice(1), 3, "square")
    with pytest.raises(PlanMismatch) as work:
        UnitPlan.create(tmp_path, items, 3, "cube")
    assert (inputs.value.changed, work.value.changed) == ("inputs", "work")


@pytest.mark.usefixtures("warm_curation_workers")
def test_finished_units_are_not_touched_and_missing_ones_come_back_byte_for_byte(tmp_path, works):
    plan = numbers(tmp_path, 40, 4)
    do(plan, works.Square(), LocalRunner(2, LIMITS))
    before = {unit: (plan.part(unit).stat(), plan.part(unit).read_bytes()) for unit in range(plan.count)}
    for unit in (0, 3, 9):
        plan.part(unit).unlink()
    heard: list[int] = []
    run_units(plan, works.Square(), InlineRunner(), lambda n=1, note=None: heard.append(n))
    assert heard == [28, 4, 4, 4], "the finished ones at once, the others one by one"
    for unit, (stat, content) in before.items():
        now = plan.part(unit).stat()
        assert plan.part(unit).read_bytes() == content
        if unit not in (0, 3, 9):
            assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


@pytest.mark.parametrize("engine", ["inline", "local", pytest.param("ray", marks=pytest.mark.ray)])
@pytest.mark.usefixtures("warm_curation_workers")
def test_what_is_done_of_a_unit_is_shown_before_it_is_finished(engine, tmp_path, works):
    plan, heard = numbers(tmp_path / "plan", 4, 3), []

    def advance(n: int = 1, note: str | None = None) -> None:
        heard.append(n)
        (tmp_path / f"go-{sum(heard)}").touch()

    if engine == "inline":
        # it hears of an item before it goes on
        run_units(plan, works.Reporting(tmp_path), InlineRunner(), advance)
        assert heard == [1, 1, 1, 0, 1, 0]
        return
    runner = LocalRunner(1, NO_LIMITS) if engine == "local" else RayRunner(1, NO_LIMITS)
    run_units(plan, works.Reporting(tmp_path), runner, advance)
    # the first unit does not go on until the first two of its items are shown
    assert heard[:2] == [1, 1]
    assert sum(heard) == 4
    assert min(heard) >= 0


def test_parts_of_another_plan_in_the_same_folder_do_not_count(tmp_path, works):
    plan = numbers(tmp_path, 8, 4)
    do(plan, works.Square(), InlineRunner())
    other = UnitPlan(tmp_path, plan.rows, plan.size, plan.items_hash, "other work")
    assert other.finished() == set()


def hazards(folder: Path) -> UnitPlan:
    what = ["fine", "segfault", "fine", "exit", "fine", "hang", "eat", "fine"]
    return UnitPlan.create(folder, pa.table({"what": what}), 3, "hazard")


EXPECTED = [
    "fine",
    "crash: crashed (SIGSEGV)",
    "fine",
    "crash: ended itself with exit code 7",
    "fine",
    "time limit: took longer than 10 s",
    "memory limit: needed more than 734.0 MB of memory",
    "fine",
]


@pytest.fixture(scope="module")
def survived(warm_curation, tmp_path_factory):
    """The plan of all hazards, after local workers, and its rows."""
    with pytest.MonkeyPatch.context() as patch, warm_curation.workers():
        patch.syspath_prepend(str(HERE))
        import unit_works

        plan = hazards(tmp_path_factory.mktemp("local"))
        return plan, do(plan, unit_works.Hazard(), LocalRunner(2, SHORT))


def test_an_item_that_crashes_hangs_or_exhausts_memory_fails_alone(survived):
    assert [row["said"] for row in survived[1]] == EXPECTED


@pytest.mark.usefixtures("warm_curation_workers")
def test_an_item_that_computes_without_end_is_stopped(tmp_path, works):
    plan = UnitPlan.create(tmp_path / "plan", pa.table({"what": ["spin"]}), 1, "hazard")
    (row,) = do(plan, works.Hazard(), LocalRunner(1, Limits(seconds=1.5, memory=700 * 2**20)))
    assert row["said"] == "time limit: took longer than 1.5 s"


@pytest.mark.usefixtures("warm_curation_workers")
@pytest.mark.ray
def test_ray_gives_the_same_parts_as_local_workers_whatever_happens_to_them(survived, tmp_path, works, capfd):
    plan = hazards(tmp_path)
    capfd.readouterr()
    rows = do(plan, works.Hazard(), RayRunner(2, SHORT))
    assert [row["said"] for row in rows] == EXPECTED
    assert capfd.readouterr() == ("", ""), "Ray prints nothing"
    for unit in range(plan.count):
        assert survived[0].part(unit).read_bytes() == plan.part(unit).read_bytes()


@pytest.mark.usefixtures("warm_curation_workers")
def test_an_item_is_not_failed_by_the_first_death_of_its_worker(tmp_path, works):
    plan = numbers(tmp_path / "plan", 4, 4)
    assert len(do(plan, works.KilledOnce(tmp_path / "marker"), LocalRunner(1, LIMITS))) == 4
    assert (tmp_path / "marker").exists()


@pytest.mark.usefixtures("warm_curation_workers")
def test_a_worker_that_dies_before_any_item_stops_the_run_with_its_last_words(tmp_path, works):
    with pytest.raises(UserError, match=r"exit code 3 three times.*bad magic number"):
        do(numbers(tmp_path, 4, 2), works.DiesInOpen(), LocalRunner(1, LIMITS))


@pytest.mark.usefixtures("warm_curation_workers")
@pytest.mark.parametrize("runner", [InlineRunner(), LocalRunner(2, LIMITS)], ids=["inline", "local"])
def test_an_error_of_the_work_itself_stops_the_run_and_names_the_unit(tmp_path, works, runner):
    plan = numbers(tmp_path, 8, 2)
    with pytest.raises(UserError, match=r"unit 2 failed: ValueError: five is not allowed \(.*unit_works.py"):
        do(plan, works.RaisesOnFive(), runner)
    with pytest.raises(UserError, match="no weights here"):
        do(plan, works.RaisesInOpen(), runner)


def test_workers_have_one_thread_and_processes_of_their_own(tmp_path, works):
    rows = do(numbers(tmp_path, 1, 1), works.Surroundings(), LocalRunner(1, LIMITS))
    assert [row["threads"] for row in rows] == [1, 1, 1]
    assert os.getpid() not in [row["pid"] for row in rows]


@pytest.mark.usefixtures("warm_curation_workers")
@pytest.mark.parametrize("there", [True, False], ids=["a folder of this machine", "a folder of another"])
def test_an_actor_works_in_the_folder_of_the_run_where_there_is_one(tmp_path, works, there):
    """Ray starts its actors in a folder of its own."""
    plan, home = numbers(tmp_path / "plan", 1, 1), tmp_path / "home"
    if there:
        home.mkdir()
    work = pickle.dumps(works.WhereIt())
    actor = UnitActor(plan.folder, work, LIMITS, search_path(), 1, str(home))
    assert actor.do(0, None) == ((None, False), None)
    actor._worker.close()
    (row,) = pq.read_table(plan.part(0)).to_pylist()
    assert row["folder"] == (str(home) if there else os.getcwd())


@pytest.mark.usefixtures("warm_curation_workers")
def test_an_actor_does_its_next_task_after_an_unexpected_error(tmp_path, works, monkeypatch):
    plan = numbers(tmp_path / "plan", 2, 1)
    actor = UnitActor(plan.folder, pickle.dumps(works.Square()), LIMITS, search_path(), 1, str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("uhr.runtime.process.Child.rss", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            actor.do(0, None)
    assert actor.do(0, None) == ((None, False), None)
    actor._worker.close()
    assert pq.read_table(plan.part(0)).to_pylist() == [{"x": 0, "y": 0}]


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_workers_have_the_threads_that_they_are_given_and_the_folder_of_their_parent(
    tmp_path, works, engine, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.chdir(tmp_path)
    # no limit of time: to import torch takes a busy machine long
    runner = {"local": LocalRunner, "ray": RayRunner}[engine](1, NO_LIMITS, threads=2)
    do(numbers(tmp_path / "plan", 1, 1), works.CountsThreads(tmp_path), runner)
    found = json.loads((tmp_path / "threads.json").read_text())
    assert found.pop("folder") == os.getcwd()
    # torch takes no more than there are cores
    assert found.pop("torch") == min(2, cores())
    assert found == {"arrow": 2, "omp": "2", "mkl": "2", "wait": "passive"}


def children_of_this() -> set[int]:
    return {each.pid for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE}


def test_workers_may_be_started_before_there_is_anything_to_do(tmp_path, works):
    before = children_of_this()
    runner = LocalRunner(3, LIMITS)
    with runner.early(2, ["unit_works", "no.such.module"]):
        early = children_of_this() - before
        assert len(early) == 2, "no more than there are items"
        rows = do(numbers(tmp_path / "one", 1, 1), works.Surroundings(), runner)
        assert rows[0]["pid"] in early
        rows = do(numbers(tmp_path / "two", 3, 1), works.Surroundings(), runner)
        assert early & {row["pid"] for row in rows}, "the other early one"
    assert children_of_this() == before
    with pytest.raises(RuntimeError, match="a check failed"), runner.early(2, []):
        raise RuntimeError("a check failed")
    assert children_of_this() == before


def test_an_early_worker_that_died_is_replaced(tmp_path, works):
    runner = LocalRunner(1, LIMITS)
    before = children_of_this()
    with runner.early(1, []):
        (early,) = children_of_this() - before
        os.kill(early, signal.SIGKILL)
        assert wait_until(lambda: early not in children_of_this(), 20)
        assert do(numbers(tmp_path, 2, 1), works.Square(), runner)[1]["y"] == 1


def test_a_policy_of_waiting_that_the_user_names_is_kept(tmp_path, works, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    rows = do(numbers(tmp_path / "plan", 1, 1), works.Surroundings(), LocalRunner(1, LIMITS))
    assert {row["wait"] for row in rows} == {"active"}


def test_files_in_the_working_folder_do_not_shadow_the_standard_library_of_workers(
    tmp_path, works, monkeypatch
):
    (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert len(do(numbers(tmp_path / "plan", 2, 1), works.Square(), LocalRunner(1, LIMITS))) == 2


def test_an_error_with_the_plan_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(UserError("what", "fix")))
    assert (error.what, error.fix) == ("what", "fix")


SCRIPT = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
import pyarrow as pa, unit_works
from uhr.runtime.pool import LocalRunner, RayRunner
from uhr.runtime.units import Limits, UnitPlan, run_units
plan = UnitPlan.create(Path(sys.argv[1]), pa.table({"x": list(range(40))}), 2, "square")
runner = {"local": LocalRunner, "ray": RayRunner}[sys.argv[3]](2, Limits(seconds=float(sys.argv[4])))
run_units(plan, unit_works.Square(float(sys.argv[5])), runner, lambda n=1, note=None: None)
"""


def start(folder: Path, engine: str, limit: float, seconds: float) -> subprocess.Popen:
    words = [str(folder), str(HERE), engine, str(limit), str(seconds)]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *words],
        env={**os.environ, "UHR_TEST_RUN": str(folder)},
        start_new_session=True,
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process that inherited the mark of this run, whoever its parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("UHR_TEST_RUN") == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_nothing_is_left_running_when_the_driver_is_killed(tmp_path, engine, works):
    folder = tmp_path / "plan"
    driver = start(folder, engine, limit=60, seconds=0.5)
    assert wait_until(lambda: folder.exists() and list(folder.glob("unit-*")), 60)
    assert len(processes_of(folder)) >= 3
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert wait_until(lambda: not processes_of(folder), 20), processes_of(folder)
    done = {part.name: part.stat().st_mtime_ns for part in folder.glob("unit-*.parquet")}
    rows = do(UnitPlan.open(folder), works.Square(), LocalRunner(2, LIMITS))
    assert [row["y"] for row in rows] == [x * x for x in range(40)]
    assert done == {name: (folder / name).stat().st_mtime_ns for name in done}


def test_time_in_which_the_whole_run_was_stopped_does_not_count_against_an_item(tmp_path):
    folder = tmp_path / "plan"
    driver = start(folder, "local", limit=6.0, seconds=0.1)
    assert wait_until(lambda: folder.exists() and list(folder.glob("unit-*")), 60)
    # what Ctrl-Z does
    os.killpg(driver.pid, signal.SIGSTOP)
    time.sleep(8)  # longer than the limit
    os.killpg(driver.pid, signal.SIGCONT)
    assert driver.wait(60) == 0, "a time limit would have tripped the work's assertion"
    assert len(UnitPlan.open(folder).finished()) == 20
