"""I-Max: from pure noise at the target's size, drawn towards an enlarged base picture by projected flow."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
import torch.nn.functional as F

from uhr.models.conditions import Conditions
from uhr.models.costs.work import Calls, swung_calls
from uhr.models.filters import haar_low_pass
from uhr.models.projection import cosine_weight, project, velocity_towards
from uhr.models.samplers.families import OnFlux1, OnFlux2
from uhr.models.samplers.options import IMaxOptions
from uhr.models.samplers.passes import Job
from uhr.models.samplers.staged import Staged
from uhr.models.stages import Ask, Stage, sized
from uhr.models.swin import crop, shifts


class IMax(Staged):
    """I-Max (2410.07536), with the values of its code for FLUX.1-dev: base of 30 steps at guidance 3.5 and
    shift 3; decoded, enlarged by bicubic interpolation and encoded; then 30 steps from pure noise at guidance
    7 and shift 6. That is 60 calls; the official function's default of 20 steps above the base is not its
    README's.

    Differences to the code: the base has the target's aspect ratio at about the native area, where the code
    divides the target by a whole number (the same for 2K and 4K squares); float32 levels; no 1e-6 in
    denominators. The Haar blocks move with swin's grid as in the code, but its ring is around the backbone's
    call alone: there the ring's zeros bleed into the border through the blocks.
    """

    Options = IMaxOptions
    above_native = True
    published_steps = 30
    published_guidance = 7.0

    @classmethod
    def calls(cls, ask: Ask, options: Any, stage: Stage, text: int) -> tuple[Calls, ...]:
        return swung_calls(ask, options, stage, text)

    @classmethod
    def plan(cls, ask: Ask, options: Any) -> list[Stage]:
        high = sized(*ask.size, ask.levels(options.shift, options.shift_factor))
        if ask.picture:
            return [high]
        return [ask.base(ask.of_steps(options.base_steps).levels(options.shift, options.base_shift)), high]

    def run(self, job: Job) -> Generator[torch.Tensor]:
        stage, picture, options = job.plan[-1], job.picture, job.options
        if picture is None:
            z = self.base(job)
            yield z
            picture = self.decode(z)
        reference = self.enlarge(picture, stage, generator=job.generator if options.sample else None)

        def velocity(z: torch.Tensor, sigma: float, step: int, said: Conditions) -> torch.Tensor:
            v = self.swung(job, z, sigma, step, said) if options.swin else self.field(z, sigma, said)
            low_pass = shifted_low_pass if options.swin and shifts(step) else haar_low_pass
            weight = cosine_weight(step, stage.steps)
            return project(v, velocity_towards(z, reference, sigma), weight, options.projection, low_pass)

        noise = self.fresh(job, stage)
        yield self.follow(job, stage, noise, velocity, options.toolkit)


def shifted_low_pass(x: torch.Tensor) -> torch.Tensor:
    """`haar_low_pass` on blocks that begin one position further up and left; at the border what lies inside
    counts alone."""
    return crop(haar_low_pass(F.pad(x, (1, 1, 1, 1), mode="replicate")))


class IMaxPipeline(IMax, OnFlux1):
    """I-Max on FLUX.1."""


class Flux2IMaxPipeline(IMax, OnFlux2):
    """I-Max on FLUX.2 [klein]."""
