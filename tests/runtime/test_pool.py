"""How many workers, on what, with how many threads: decided before anything is loaded."""

import pytest

from uhr.base.errors import UserError
from uhr.runtime import pool as pools
from uhr.runtime import threads
from uhr.runtime.pool import InlineRunner, LocalRunner, Pool, RayRunner, visible_gpus
from uhr.runtime.units import NO_LIMITS, Limits


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Sixteen cores, three GPUs; nobody says how many threads."""
    monkeypatch.setattr(threads, "threads_here", lambda: 16)
    monkeypatch.setattr(pools, "cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 4,GPU-7")


@pytest.mark.parametrize(
    ("workers", "device", "expected"),
    [
        (None, "cuda", (3, 5, ("1", "4", "GPU-7"))),
        (2, "cuda", (2, 8, ("1", "4", "GPU-7"))),
        (6, "cuda", (6, 2, ("1", "4", "GPU-7"))),
        (None, "cuda:1", (1, 16, ())),
        (None, "cpu", (1, 16, ())),
        (4, "cpu", (4, 4, ())),
        (99, "cpu", (99, 1, ())),
    ],
)
def test_local_workers_have_a_gpu_each_and_share_the_cores(workers, device, expected):
    runner = Pool("local", workers).runner(Limits(7), threads=None, device=device)
    assert isinstance(runner, LocalRunner)
    assert (runner.workers, runner.threads, runner.gpus) == expected
    assert runner.limits == Limits(7)


@pytest.mark.parametrize(
    ("workers", "address", "device", "expected"),
    [
        (None, None, "cuda", (3, 5, 1)),
        (2, None, "cpu", (2, 8, 0)),
        (None, None, "cuda:1", (1, 16, 0)),
        (None, "10.0.0.1:6379", "cuda", (None, 5, 1)),
        (None, "10.0.0.1:6379", "cpu", (1, 16, 0)),
        (8, "10.0.0.1:6379", "cuda", (8, 2, 1)),
    ],
)
def test_ray_actors_too_and_a_cluster_is_queried_for_its_gpus(workers, address, device, expected):
    runner = Pool("ray", workers, address).runner(NO_LIMITS, threads=None, device=device, carry=True)
    assert isinstance(runner, RayRunner)
    assert (runner.workers, runner.threads, runner.gpus) == expected
    assert runner.address == address
    assert runner.carry


@pytest.mark.parametrize(
    ("given", "expected"), [("3", 3), ("5,2", 5), ("1", 1), ("0", 8), ("many", 8), ("", 8)]
)
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_omp_num_threads_is_the_number_of_each_worker(engine, given, expected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert Pool(engine, 2).runner(NO_LIMITS, threads=None).threads == expected


def test_no_workers_are_this_process():
    assert isinstance(Pool("ray", 0).runner(NO_LIMITS), InlineRunner)


@pytest.mark.parametrize(("engine", "workers"), [("local", 2), ("ray", 0)])
def test_an_address_wants_ray(engine, workers):
    with pytest.raises(UserError, match="--address names a Ray cluster"):
        Pool.of(engine, workers, "10.0.0.1:6379")


def test_an_unknown_engine_names_those_that_there_are():
    with pytest.raises(UserError, match="--engine: unknown engine 'rey': did you mean ray"):
        Pool.of("rey", None, None)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_workers_of_one_thread_are_one_per_core_whatever_omp_num_threads_says(engine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    for workers, expected in ((None, 16), (3, 3)):
        runner = Pool(engine, workers).runner(NO_LIMITS)
        assert (runner.workers, runner.threads, runner.gpus) == (expected, 1, type(runner.gpus)())


def test_on_a_cluster_workers_of_one_thread_are_as_many_as_it_has_cores():
    assert Pool("ray", None, "10.0.0.1:6379").runner(NO_LIMITS).workers is None
    assert not Pool("ray", None, "10.0.0.1:6379").runner(NO_LIMITS).carry


def test_the_gpus_of_this_process_are_those_that_it_may_see(monkeypatch):
    assert visible_gpus() == ("1", "4", "GPU-7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert visible_gpus() == ("0", "1")
