"""Each worker has GPUs of its own, and units may go to machines that share no folder. No GPU is touched: what
a worker sees is a variable of its process."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from uhr.base.errors import UserError
from uhr.runtime.pool import LocalRunner, RayRunner
from uhr.runtime.units import NO_LIMITS, UnitPlan, run_units

HERE = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("warm_curation_workers")


@pytest.fixture
def work(monkeypatch, tmp_path):
    """Writes the GPUs that each process sees into `work.folder`."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    import unit_works

    (tmp_path / "seen").mkdir()
    return unit_works.SeesGpus(tmp_path / "seen")


@pytest.fixture
def plan(tmp_path):
    return UnitPlan.create(tmp_path / "plan", pa.table({"x": list(range(6))}), 1, "sees")


def seen(plan, work, runner) -> list[str]:
    run_units(plan, work, runner, lambda n=1, note=None: None)
    return [(work.folder / str(x)).read_text() for x in range(plan.rows)]


def test_local_workers_share_the_gpus_out_in_turn(plan, work):
    assert set(seen(plan, work, LocalRunner(3, NO_LIMITS, gpus=("3", "5")))) == {"3", "5"}


def test_without_gpus_to_share_out_workers_see_what_their_parent_sees(plan, work, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert set(seen(plan, work, LocalRunner(2, NO_LIMITS))) == {"7"}


@pytest.mark.ray
def test_ray_actors_have_a_gpu_each_and_a_carried_plan_leaves_no_part_behind(plan, work):
    import ray

    ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    try:
        runner = RayRunner(2, NO_LIMITS, gpus=1, carry=True)
        assert set(seen(plan, work, runner)) == {"0", "1"}
        assert plan.finished() == set()
        with pytest.raises(UserError, match=r"3 workers need 4 CPUs and 3 GPUs .* has 4 and 2: --workers 2"):
            seen(plan, work, RayRunner(3, NO_LIMITS, gpus=1))
        with pytest.raises(UserError, match="has 2 GPUs: --device cpu"):
            seen(plan, work, RayRunner(None, NO_LIMITS, gpus=3))
    finally:
        ray.shutdown()


def test_a_packed_plan_is_the_same_plan_elsewhere(plan, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name, data in plan.packed().items():
        (tmp_path / "elsewhere" / name).write_bytes(data)
    there = UnitPlan.open(tmp_path / "elsewhere")
    assert [there.items(unit) for unit in range(6)] == [plan.items(unit) for unit in range(6)]
    assert there.part(3).name == plan.part(3).name
