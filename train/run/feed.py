"""The batches of a run, made ahead by a background thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from uhr.train.data.mixture import Turn
from uhr.train.data.prefetch import Prefetch
from uhr.train.objectives.draws import Draws
from uhr.train.run.job import Job
from uhr.train.run.phase import PhaseRun, TrainingBatch, TrainingUse
from uhr.train.run.processes.parallel import ALONE, Ranks, Share

STEPS_AHEAD = 8
"""Steps whose rows are read ahead from an object store. They are in host memory, not on the device."""


@dataclass(frozen=True)
class LoadedBatch:
    """The samples of one step's global batch that are computed here, on the run's device.

    turn: the whole batch. share: which of its places these are. uris: the images' files.
    """

    turn: Turn
    share: Share
    use: TrainingUse
    batch: TrainingBatch
    draws: Draws
    uris: tuple[str, ...]


class Phases:
    """The phases of a job; one is open at a time."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self._job, self._device = job, device
        self._open: PhaseRun | None = None

    def __getitem__(self, index: int) -> PhaseRun:
        if self._open is None or self._open.index != index:
            mixture = self._job.mixture_of(index)
            self._open = PhaseRun(self._job.recipe, index, mixture, self._device)
        return self._open


@dataclass(frozen=True)
class _Read:
    """The stored rows of a step, on the CPU, and what they become a batch by."""

    turn: Turn
    share: Share
    use: TrainingUse
    rows: Any
    draws: Draws

    def batch(self, use: TrainingUse) -> LoadedBatch:
        """Make the batch on the device of `use`, which is that of the rows."""
        batch = use.batch(self.rows, self.draws)
        return LoadedBatch(self.turn, self.share, use, batch, self.draws, self.rows.uris)


def _read(job: Job, phases: Phases, step: int, ranks: Ranks) -> _Read:
    index, inside = job.recipe.phase_of(step)
    phase = phases[index]
    turn = phase.mixture.at(inside)
    use = phase.uses[turn.use]
    share = ranks.share(len(turn.rows), job.recipe.batch.micro)
    draws = Draws(job.recipe.seed, step, share.places)
    rows = use.read(turn._replace(rows=tuple(turn.rows[place] for place in share.places)), draws)
    return _Read(turn, share, use, rows, draws)


def load_batch(job: Job, phases: Phases, step: int, ranks: Ranks = ALONE) -> LoadedBatch:
    """Read and make this process's part of the batch of a step, counted from 0."""
    found = _read(job, phases, step, ranks)
    return found.batch(found.use)


def feed(job: Job, device: torch.device, first: int, ranks: Ranks = ALONE) -> Prefetch[LoadedBatch]:
    """The batches of all steps from `first` on. The thread has phases of its own.

    If data are in an object store, another thread reads the rows of more steps ahead.
    """
    phases, stop = Phases(job, device), job.recipe.steps
    if not any(each.data.files.remote for each in job.data):
        return Prefetch(lambda step: load_batch(job, phases, step, ranks), first, stop)
    on_cpu = Phases(job, torch.device("cpu"))
    rows = Prefetch(lambda step: _read(job, on_cpu, step, ranks), first, stop, STEPS_AHEAD)

    def produce(step: int) -> LoadedBatch:
        found = rows.take(step)
        return found.batch(phases[job.recipe.phase_of(step)[0]].uses[found.turn.use])

    return Prefetch(produce, first, stop, source=rows)
