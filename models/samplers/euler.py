"""Euler: the plain sampler of flow models, and the base pass of most others."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError
from uhr.models.ops.choices import ShiftPolicy
from uhr.models.samplers.core.exports import pipelines_of
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.guidance import guided_plan
from uhr.models.samplers.core.options import Levels, SamplerOptions
from uhr.models.samplers.core.plan import SamplingPlan, SamplingRequest, default_codings
from uhr.models.samplers.core.sampler import Sampler
from uhr.models.samplers.core.stages import dense_stage
from uhr.models.samplers.core.toolkit import Toolkit

if TYPE_CHECKING:
    import torch

    from uhr.models.samplers.core.engine import Engine


class EulerOptions(SamplerOptions):
    """sigmas:       noise levels, falling; used as they are, unshifted. A final 0 may be left out
    shift:        none, static (by `shift_factor`) or dynamic (refused above the tokens that it was calibrated
                  for), of the linear grid; None is what the scheduler's configuration says, spacing included
                  (Karras, exponential, beta, a terminal level), and static with a toolkit
    shift_factor: of the static shift
    toolkit:      what lets the backbone work above its native size (`samplers/core/toolkit.py`); {} is a
                  toolkit of its defaults
    """

    sigmas: Levels | None = None
    shift: ShiftPolicy | None = None
    shift_factor: float = 3.0
    toolkit: Toolkit | None = None


class Euler(Sampler):
    """Text to image by Euler steps.

    With the schedule that the checkpoint was published with it gives what the stock pipeline gives. With a
    toolkit it is the training-free baseline that papers call FLUX*: above the native size with NTK positions,
    proportional attention and a static shift.
    """

    Options = EulerOptions
    takes_image = False
    native_times = 1

    def command_steps(self, facts: ModelFacts, options: Any, steps: int | None) -> int:
        if options.sigmas is None:
            return super().command_steps(facts, options, steps)
        if steps is not None:
            what = f"both {steps} steps and sigmas are given"
            raise UserError(what, "give one: each of the levels is a step")
        return len(_as_levels(options.sigmas)) - 1

    def plan(self, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
        levels = _levels(facts, request, options)
        stage = dense_stage(facts, request, request.size, levels, options.toolkit)
        return guided_plan(facts, request, options, default_codings([stage], image=False))

    def run(self, engine: Engine, plan: SamplingPlan) -> Generator[torch.Tensor]:
        (stage,) = plan.stages
        with engine.network(stage, alone="toolkit.ntk=1") as velocity:
            z = engine.integrate(stage, engine.fresh(stage), velocity)
        yield z


def _levels(facts: ModelFacts, request: SamplingRequest, options: EulerOptions) -> list[float]:
    from uhr.models.ops.schedules import Runaway

    if options.sigmas is not None:
        return _as_levels(options.sigmas)
    shift = options.shift
    if shift is None and options.toolkit is not None:
        shift = ShiftPolicy.STATIC
    try:
        return facts.schedule(request.steps, facts.tokens(request.size), shift, options.shift_factor)
    except Runaway as error:
        raise error.mended("take a static one: set shift=static") from error


def _as_levels(sigmas: Sequence[float]) -> list[float]:
    levels = list(sigmas)
    if levels and levels[-1] > 0:
        levels.append(0.0)
    falling = all(a > b for a, b in pairwise(levels))
    if len(levels) < 2 or not falling or levels[0] > 1 or levels[-1] < 0:
        raise UserError(f"sigmas {levels}", "give falling noise levels in (0, 1]")
    return levels


__getattr__ = pipelines_of(Euler)
