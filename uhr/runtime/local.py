"""Units on this machine, in worker processes of our own."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import wait as wait_any

from uhr.runtime.process import Child, Surroundings
from uhr.runtime.units import Limits, UnitPlan, Work
from uhr.runtime.worker import POLL_SECONDS, Worker, search_path


class LocalRunner:
    """`workers` child processes with `threads` threads each, killed when an item passes a limit.

    `gpus`: names as in CUDA_VISIBLE_DEVICES; each child sees one of them alone, in turn. Without any, a child
    sees what this process sees.
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
        """Start children for a later `run` now, `most` of them at most: they import these modules, which may
        take many seconds, while the caller prepares what they are to do."""
        count = min(self.workers, most)
        self._early = [Child(self._around(number, imports)) for number in range(count)]
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
            team.append(Worker(plan.folder, work, self.limits, self._around(number), child))
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

    def _around(self, number: int, imports: Sequence[str] = ()) -> Surroundings:
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[number % len(self.gpus)]} if self.gpus else {}
        return Surroundings(search_path(), self.threads, gpu, imports)
