"""Run units in worker processes on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import wait as wait_any

from uhr.base.errors import UserError
from uhr.runtime.gpus import visible_gpus
from uhr.runtime.process import Child, ChildSetup
from uhr.runtime.schedule import Schedule
from uhr.runtime.units import Limits, Report, Segment, UnitPlan
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
        self._own_gpus: tuple[str, ...] = ()

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

    def run(self, plan: UnitPlan, segments: Sequence[Segment], report: Report) -> Iterator[tuple[int, int]]:
        schedule = Schedule(plan, segments)
        if any(segment.workers is not None and segment.gpus != 0 for segment in segments):
            self._own_gpus = visible_gpus()
        teams = [self._team(plan, number, segment, schedule.left) for number, segment in enumerate(segments)]
        schedule.capacity = 1 + 2 * sum(map(len, teams[1:]))
        busy: list[tuple[int, Worker]] = []

        def assign() -> None:
            # the last segments first: they free what is held in memory
            for number, team in reversed(list(enumerate(teams))):
                while (worker := next((w for w in team if w.unit is None), None)) is not None:
                    task = schedule.take(number)
                    if task is None:
                        break
                    worker.assign(*task)
                    busy.append((number, worker))

        try:
            assign()
            while schedule.left:
                wait_any([worker.connection for _, worker in busy], timeout=POLL_SECONDS)
                for number, worker in list(busy):
                    finished = worker.check()
                    if finished is None:
                        if worker.unit is not None and worker.done:
                            report(number, worker.unit, worker.done)
                        continue
                    busy.remove((number, worker))
                    schedule.done(number, finished, worker.passed)
                    worker.passed = None
                    assign()
                    yield number, finished
        finally:
            for team in teams:
                for worker in team:
                    worker.close()

    def _team(self, plan: UnitPlan, number: int, segment: Segment, units: int) -> list[Worker]:
        """Make the workers of a segment; each starts its child with its first task."""
        count = min(self.workers if segment.workers is None else self._most(segment), units)
        team = []
        for place in range(count):
            child = self._early.pop(0) if self._early and number == 0 else None
            setup = self._setup(place, (), segment)
            team.append(Worker(plan, segment.work, segment.limits or self.limits, setup, child))
        return team

    def _most(self, segment: Segment) -> int:
        """The number of workers of a segment with a pool of its own: as many as its GPUs can have."""
        assert segment.workers is not None
        least, most = segment.workers
        needed = self._gpus_each(segment)
        if not needed:
            return most
        possible = int(len(self._own_gpus) / needed)
        if possible < least:
            what = f"{least} workers need {least * needed:g} GPUs and this machine has {len(self._own_gpus)}"
            raise UserError(what, "set num_gpus and actors of the stage's resources to fit")
        return min(most, possible)

    def _gpus_each(self, segment: Segment) -> float:
        return min(1, len(self._own_gpus)) if segment.gpus is None else segment.gpus

    def _setup(self, number: int, imports: Sequence[str] = (), segment: Segment | None = None) -> ChildSetup:
        names, share = self.gpus, 1
        if segment is not None and segment.workers is not None:
            names, needed = self._own_gpus, self._gpus_each(segment)
            # a worker that needs part of a GPU shares it with the next ones
            share = max(1, int(1 / needed)) if needed else 1
        gpu = {"CUDA_VISIBLE_DEVICES": names[number // share % len(names)]} if names else {}
        threads = self.threads if segment is None or segment.threads is None else segment.threads
        return ChildSetup(search_path(), threads, gpu, imports)
