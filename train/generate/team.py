"""Who paints: how many processes, on which engine, with which GPU and how many threads each."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal

from uhr.base.errors import UserError
from uhr.base.store import is_url
from uhr.models.generate.request import Request
from uhr.runtime.pool import InlineRunner, LocalRunner, RayRunner
from uhr.runtime.threads import threads_each, threads_here
from uhr.runtime.units import NO_LIMITS, Runner
from uhr.train.generate.work import IMPORTS

Engine = Literal["ray", "local"]


def runner_of(engine: Engine, workers: int | None, address: str | None, device: str) -> Runner:
    """The runner for pictures on `device` ("cuda" is any GPU, "cuda:1" that one). A picture may take as long
    as it needs, so it has no limits.

    `workers` None is one per GPU, and one on the CPU or on a GPU that is named; 0 is this process. The number
    of threads is OMP_NUM_THREADS, or follows from the number of workers (`threads.threads_each`), never from
    what is left to do; on the CPU that of the run which began the set is kept (`work.PaintWork`).
    """
    if address is not None and (engine != "ray" or workers == 0):
        raise UserError("--address names a Ray cluster", "leave out --engine local and --workers 0")
    if workers == 0:
        return InlineRunner()
    shared = device == "cuda"
    gpus = visible_gpus() if shared else ()
    count = workers or (None if shared and address is not None else len(gpus) or 1)
    threads = threads_each(count or len(gpus) or 1)
    if engine == "local":
        assert count is not None
        return LocalRunner(count, NO_LIMITS, threads, gpus)
    return RayRunner(count, NO_LIMITS, address, threads, gpus=int(shared), carry=True)


def early(runner: Runner, items: int, out: str) -> contextlib.AbstractContextManager[None]:
    """Within it, worker processes of this machine are there already and import what painting needs, so that
    this takes no longer than the checks that go on meanwhile; other runners start when they run. Not for an
    `out` that looks finished."""
    if not isinstance(runner, LocalRunner) or (not is_url(out) and (Path(out) / "set.json").exists()):
        return contextlib.nullcontext()
    return runner.early(items, IMPORTS)


def device_of(request: Request) -> str:
    """The device that is asked for; of "auto" what that is here."""
    from uhr.models.loading.model import pick_device

    return str(pick_device("auto")) if request.device == "auto" else request.device


def is_remote(runner: Runner) -> bool:
    """Whether the work goes to the machines of a cluster, which may have what this one has not."""
    return isinstance(runner, RayRunner) and runner.address is not None


def beginning(runner: Runner) -> str:
    """What a run does before there is a picture, which may take minutes."""
    if isinstance(runner, RayRunner | LocalRunner):
        number = {None: "a worker per GPU", 1: "1 worker"}.get(runner.workers, f"{runner.workers} workers")
        return f"{'starting Ray; ' if isinstance(runner, RayRunner) else ''}loading the model in {number}"
    return "loading the model"


def threads_of(runner: Runner) -> int:
    """How many threads each of its workers has."""
    return runner.threads if isinstance(runner, LocalRunner | RayRunner) else threads_here()


def visible_gpus() -> tuple[str, ...]:
    """The GPUs of this process, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return tuple(name.strip() for name in said.split(",") if name.strip())
    return tuple(map(str, range(torch.cuda.device_count())))
