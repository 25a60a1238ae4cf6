"""The workers of a set: their runner, number, device and threads."""

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
    """The runner for images on `device` ("cuda" is any GPU, "cuda:1" that one), without time or memory
    limits.

    The number of threads does not depend on how much is left to do. On the CPU, it stays the number of the
    run that began the set (`work.GenerateWork`).
    """
    return pool.runner(NO_LIMITS, threads=None, device=device, carry=True)


def started_early(runner: Runner, items: int, out: str) -> contextlib.AbstractContextManager[None]:
    """Start local worker processes before the block, so that they import what they need while the block
    checks the set. Other runners start when they run. Nothing is started for an `out` that looks finished.
    """
    if not isinstance(runner, LocalRunner) or (not is_url(out) and (Path(out) / "set.json").exists()):
        return contextlib.nullcontext()
    return runner.early(items, IMPORTS)


def device_of(request: Request) -> str:
    """The requested device, or what "auto" is on this machine."""
    from uhr.models.loading.model import pick_device

    return str(pick_device("auto")) if request.device == "auto" else request.device


def is_remote(runner: Runner) -> bool:
    """Whether the work runs on other machines, which may have what this one does not."""
    return isinstance(runner, RayRunner) and runner.address is not None


def startup_note(runner: Runner) -> str:
    """What a run does before the first image, which may take minutes, as a note of its progress."""
    if isinstance(runner, RayRunner | LocalRunner):
        number = {None: "a worker per GPU", 1: "1 worker"}.get(runner.workers, f"{runner.workers} workers")
        return f"{'starting Ray; ' if isinstance(runner, RayRunner) else ''}loading the model in {number}"
    return "loading the model"


def threads_of(runner: Runner) -> int:
    """Number of threads of each worker."""
    return runner.threads if isinstance(runner, LocalRunner | RayRunner) else threads_here()
