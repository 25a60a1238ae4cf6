"""How many paint, on what, with how many threads: decided before anything is loaded."""

import math

import pytest

from uhr.base.errors import UserError
from uhr.runtime.pool import InlineRunner, LocalRunner, RayRunner
from uhr.train.generate.team import beginning, runner_of, visible_gpus
from uhr.train.run import threads


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Sixteen cores, three GPUs; nobody says how many threads."""
    monkeypatch.setattr(threads, "threads_here", lambda: 16)
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
    runner = runner_of("local", workers, None, device)
    assert isinstance(runner, LocalRunner)
    assert (runner.workers, runner.threads, runner.gpus) == expected
    assert math.isinf(runner.limits.seconds), "a picture may take as long as it needs"


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
def test_ray_actors_too_and_a_cluster_is_asked_for_its_gpus(workers, address, device, expected):
    runner = runner_of("ray", workers, address, device)
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
    assert runner_of(engine, 2, None, "cpu").threads == expected


def test_no_workers_are_this_process():
    assert isinstance(runner_of("ray", 0, None, "cpu"), InlineRunner)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("ray", None, None, "cpu"), "starting Ray; loading the model in 1 worker"),
        (("ray", None, "10.0.0.1:6379", "cuda"), "starting Ray; loading the model in a worker per GPU"),
        (("local", 2, None, "cpu"), "loading the model in 2 workers"),
        (("ray", 0, None, "cpu"), "loading the model"),
    ],
)
def test_what_goes_on_before_there_is_a_picture_is_told(asked, words):
    assert beginning(runner_of(*asked)) == words


@pytest.mark.parametrize(("engine", "workers"), [("local", 2), ("ray", 0)])
def test_an_address_wants_ray(engine, workers):
    with pytest.raises(UserError, match="--address names a Ray cluster"):
        runner_of(engine, workers, "10.0.0.1:6379", "cpu")


def test_the_gpus_of_this_process_are_those_that_it_may_see(monkeypatch):
    assert visible_gpus() == ("1", "4", "GPU-7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert visible_gpus() == ("0", "1")


def test_every_module_that_a_worker_imports_early_exists():
    """A worker passes over a name that cannot be imported, and only starts more slowly."""
    import importlib

    from uhr.train.generate.work import IMPORTS

    for name in IMPORTS:
        importlib.import_module(name)
