"""Who paints: how many processes, on which engine, with which GPU and how many threads each."""

from __future__ import annotations

import contextlib
from pathlib import Path

from uhr.base.store import is_url
from uhr.models.generate.request import Request
from uhr.runtime.pool import LocalRunner, Pool, RayRunner
from uhr.runtime.threads import threads_here
from uhr.runtime.units import NO_LIMITS, Runner
from uhr.train.generate.work import IMPORTS


def runner_of(pool: Pool, device: str) -> Runner:
    """The runner for images on `device` ("cuda" is any GPU, "cuda:1" that one). There are no limits: an image
    may take as long as it needs.

    The number of threads never depends on what is left to do; on the CPU that of the run which began the set
    is kept (`work.PaintWork`).
    """
    return pool.runner(NO_LIMITS, threads=None, device=device, carry=True)


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
    """What a run does before there is an image, which may take minutes."""
    if isinstance(runner, RayRunner | LocalRunner):
        number = {None: "a worker per GPU", 1: "1 worker"}.get(runner.workers, f"{runner.workers} workers")
        return f"{'starting Ray; ' if isinstance(runner, RayRunner) else ''}loading the model in {number}"
    return "loading the model"


def threads_of(runner: Runner) -> int:
    """How many threads each of its workers has."""
    return runner.threads if isinstance(runner, LocalRunner | RayRunner) else threads_here()
