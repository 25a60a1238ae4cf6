"""The batches of a run, made ahead by a background thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from uhr.train.data.mixture import Turn
from uhr.train.data.prefetch import Prefetch
from uhr.train.objectives.draws import Draws
from uhr.train.run.job import Job
from uhr.train.run.phase import PhaseRun, TrainingBatch, TrainingUse
from uhr.train.run.processes.parallel import ALONE, Ranks, Share


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


def load_batch(job: Job, phases: Phases, step: int, ranks: Ranks = ALONE) -> LoadedBatch:
    """Read and make this process's part of the batch of a step, counted from 0."""
    index, inside = job.recipe.phase_of(step)
    phase = phases[index]
    turn = phase.mixture.at(inside)
    use = phase.uses[turn.use]
    share = ranks.share(len(turn.rows), job.recipe.batch.micro)
    draws = Draws(job.recipe.seed, step, share.places)
    rows = use.read(turn._replace(rows=tuple(turn.rows[place] for place in share.places)), draws)
    return LoadedBatch(turn, share, use, use.batch(rows, draws), draws, rows.uris)


def feed(job: Job, device: torch.device, first: int, ranks: Ranks = ALONE) -> Prefetch[LoadedBatch]:
    """The batches of all steps from `first` on. The thread has phases of its own."""
    phases = Phases(job, device)
    produce: Callable[[int], LoadedBatch] = lambda step: load_batch(job, phases, step, ranks)  # noqa: E731
    return Prefetch(produce, first, job.recipe.steps)
