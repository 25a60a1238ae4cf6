"""Euler: the plain sampler of flow models, and the base pass of most others."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.samplers.families import OnFlux1, OnFlux2
from uhr.models.samplers.options import EulerOptions
from uhr.models.samplers.passes import Job
from uhr.models.samplers.staged import Staged
from uhr.models.schedules import Runaway
from uhr.models.spec import ModelSpec, ShiftPolicy
from uhr.models.stages import Ask, Stage, sized


class Euler(Staged):
    """Text to image by Euler steps.

    With the schedule that the checkpoint was published with it gives what the stock pipeline gives. With a
    toolkit it is the training-free baseline that papers call FLUX*: above the native size with NTK positions,
    proportional attention and a static shift.
    """

    Options = EulerOptions
    takes_picture = False
    native_times = 1

    @classmethod
    def plan(cls, ask: Ask, options: EulerOptions) -> list[Stage]:
        shift, (rows, columns) = options.shift, ask.grid
        if shift is None and options.toolkit is not None:
            shift = ShiftPolicy.STATIC
        if options.sigmas is not None:
            return [sized(*ask.size, _as_levels(options.sigmas))]
        try:
            levels = ask.schedule(ask.steps, rows * columns, shift, options.shift_factor)
        except Runaway as error:
            raise error.mended("take a static one: set shift=static") from error
        return [sized(*ask.size, levels)]

    @classmethod
    def step_count(cls, spec: ModelSpec, options: Any, asked: int | None) -> int:
        if options.sigmas is None:
            return super().step_count(spec, options, asked)
        if asked is not None:
            raise UserError(
                f"both {asked} steps and sigmas are given", "give one: each of the levels is a step"
            )
        return len(_as_levels(options.sigmas)) - 1

    @classmethod
    def default_steps(cls, spec: ModelSpec) -> int:
        """What the model's card says."""
        return spec.steps

    def run(self, job: Job) -> Generator[torch.Tensor]:
        (stage,) = job.plan
        yield self.follow(job, stage, self.fresh(job, stage), toolkit=job.options.toolkit)


def _as_levels(sigmas: Sequence[float]) -> list[float]:
    levels = list(sigmas)
    if levels and levels[-1] > 0:
        levels.append(0.0)
    falling = all(a > b for a, b in pairwise(levels))
    if len(levels) < 2 or not falling or levels[0] > 1 or levels[-1] < 0:
        raise UserError(f"sigmas {levels}", "give falling noise levels in (0, 1]")
    return levels


class EulerPipeline(Euler, OnFlux1):
    """Euler on FLUX.1."""


class Flux2EulerPipeline(Euler, OnFlux2):
    """Euler on FLUX.2 [klein]."""
