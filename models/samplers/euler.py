"""Euler: the plain sampler of flow models."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError
from uhr.models.ops.choices import ShiftPolicy
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.guidance import guided_plan
from uhr.models.samplers.core.options import Levels, SamplerOptions
from uhr.models.samplers.core.pipelines.exports import pipelines_of
from uhr.models.samplers.core.plan import SamplingPlan, SamplingRequest, default_vae_calls
from uhr.models.samplers.core.sampler import Sampler
from uhr.models.samplers.core.stages import dense_stage
from uhr.models.samplers.core.toolkit import Toolkit

if TYPE_CHECKING:
    import torch

    from uhr.models.samplers.core.engine import Engine


class EulerOptions(SamplerOptions):
    """Options of euler.

    sigmas:       falling noise levels, used without a shift. A final 0 may be left out
    shift:        shift of the linear grid: none, static (by `shift_factor`) or dynamic (an error above the
                  tokens that it was calibrated for); None is the scheduler's configuration, spacing included
                  (Karras, exponential, beta, a terminal level), and static with a toolkit
    shift_factor: factor of the static shift
    toolkit:      changes of the backbone for sizes above the native one (`samplers/core/toolkit.py`); {} is a
                  toolkit with its defaults
    """

    sigmas: Levels | None = None
    shift: ShiftPolicy | None = None
    shift_factor: float = 3.0
    toolkit: Toolkit | None = None


class Euler(Sampler):
    """Text to image by Euler steps.

    With the checkpoint's own schedule the result equals that of the stock pipeline. With a toolkit it is the
    training-free baseline that papers call FLUX*: above the native size with NTK positions, proportional
    attention and a static shift.
    """

    Options = EulerOptions
    takes_image = False
    native_times = 1

    def command_steps(self, facts: ModelFacts, options: Any, steps: int | None) -> int:
        if options.sigmas is None:
            return super().command_steps(facts, options, steps)
        if steps is not None:
            what = f"both {steps} steps and sigmas are given"
            raise UserError(what, "give only one of them: the levels determine the steps")
        return len(_as_levels(options.sigmas)) - 1

    def plan(self, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
        levels = _levels(facts, request, options)
        stage = dense_stage(facts, request, request.size, levels, options.toolkit)
        return guided_plan(facts, request, options, default_vae_calls([stage], image=False))

    def run(self, engine: Engine, plan: SamplingPlan) -> Generator[torch.Tensor]:
        (stage,) = plan.stages
        with engine.network(stage, alone="toolkit.ntk=1") as velocity:
            z = engine.integrate(stage, engine.draw_noise(stage), velocity)
        yield z


def _levels(facts: ModelFacts, request: SamplingRequest, options: EulerOptions) -> list[float]:
    from uhr.models.ops.schedules import ShiftOutOfRange

    if options.sigmas is not None:
        return _as_levels(options.sigmas)
    shift = options.shift
    if shift is None and options.toolkit is not None:
        shift = ShiftPolicy.STATIC
    try:
        return facts.schedule(request.steps, facts.tokens(request.size), shift, options.shift_factor)
    except ShiftOutOfRange as error:
        raise error.with_fix("take a static one: set shift=static") from error


def _as_levels(sigmas: Sequence[float]) -> list[float]:
    levels = list(sigmas)
    if levels and levels[-1] > 0:
        levels.append(0.0)
    falling = all(a > b for a, b in pairwise(levels))
    if len(levels) < 2 or not falling or levels[0] > 1 or levels[-1] < 0:
        raise UserError(f"sigmas {levels} are invalid", "give falling noise levels in (0, 1]")
    return levels


__getattr__ = pipelines_of(Euler)
