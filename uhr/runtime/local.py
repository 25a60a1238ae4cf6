"""Run units in worker processes on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import wait as wait_any

from uhr.runtime.process import Child, ChildSetup
from uhr.runtime.units import Limits, UnitPlan, Work
from uhr.runtime.worker import POLL_SECONDS, Worker, search_path


class LocalRunner:
    """Runs units in child processes, which are killed when an item exceeds a limit.

    Args:
        workers: number of child processes.
        limits: of each item.
        threads: of each child.
        gpus: names as in CUDA_VISIBLE_DEVICES, of which each child sees one, in turn. If empty, a child sees
            the same GPUs as this process.
    """

    def __init__(self, workers: int, limits: Limits, threads: int = 1, gpus: Sequence[str] = ()) -> None:
        assert workers > 0
        self.gpus = tuple(gpus)
        self.workers = workers
        self.limits = limits
        self.threads = threads
        self._early: list[Child] = []

    @contextlib.contextmanager
    def early(self, most: int, imports: Sequence[str]) -> Generator[None]:
        """Context manager that starts up to `most` children now, for a `run` inside the block.

        They import `imports`, which may take many seconds, while the caller prepares their work.
        """
        count = min(self.workers, most)
        self._early = [Child(self._setup(number, imports)) for number in range(count)]
        try:
            yield
        finally:
            for child in self._early:
                child.kill()
            self._early = []

    def run(self, plan: UnitPlan, work: Work, pending: Sequence[int]) -> Iterator[int]:
        waiting = iter(pending)
        team = []
        for number in range(min(self.workers, len(pending))):
            child = self._early.pop(0) if self._early else None
            team.append(Worker(plan.folder, work, self.limits, self._setup(number), child))
        try:
            busy = list(team)
            for worker in team:
                worker.assign(next(waiting))
            while busy:
                wait_any([worker.connection for worker in busy], timeout=POLL_SECONDS)
                for worker in list(busy):
                    finished = worker.check()
                    if finished is None:
                        continue
                    following = next(waiting, None)
                    if following is None:
                        busy.remove(worker)
                    else:
                        worker.assign(following)
                    yield finished
        finally:
            for worker in team:
                worker.close()

    def _setup(self, number: int, imports: Sequence[str] = ()) -> ChildSetup:
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[number % len(self.gpus)]} if self.gpus else {}
        return ChildSetup(search_path(), self.threads, gpu, imports)
