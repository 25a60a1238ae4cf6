"""Units on this machine, in worker processes of our own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait as wait_any

from uhr.manifests.runners.worker import POLL_SECONDS, Worker
from uhr.manifests.units import Limits, UnitPlan, Work


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

    def run(self, plan: UnitPlan, work: Work, pending: Sequence[int]) -> Iterator[int]:
        waiting = iter(pending)
        team = [
            Worker(plan.folder, work, self.limits, threads=self.threads, environment=self._seen_by(number))
            for number in range(min(self.workers, len(pending)))
        ]
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

    def _seen_by(self, number: int) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": self.gpus[number % len(self.gpus)]} if self.gpus else {}
