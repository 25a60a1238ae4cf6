"""SDEdit: a picture is enlarged, noised part of the way, and painted on from there."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from uhr.models import flow
from uhr.models.samplers.families import OnFlux1, OnFlux2
from uhr.models.samplers.options import SDEditOptions
from uhr.models.samplers.passes import Job
from uhr.models.samplers.staged import Staged
from uhr.models.stages import Ask, Stage, after_strength, check_begins_below_noise, sized


class SDEdit(Staged):
    """A base picture (or a given one) in pixels to the target's size, encoded, brought to the noise level of
    strength, and the rest of the schedule from there (Meng et al. 2108.01073, in the form of CLEAR).

    Published for FLUX.1-dev: 20 steps, guidance 7.5, NTK 10 and proportional attention, static shift 3. At
    strength 0.7 that is 14 calls, from level 0.875, beside those of the base pass. The strength counts steps,
    as FluxImg2Img does; the level at which the path begins is the shifted one.
    """

    Options = SDEditOptions
    published_steps = 20
    published_guidance = 7.5

    @classmethod
    def plan(cls, ask: Ask, options: Any) -> list[Stage]:
        levels = after_strength(ask.levels(options.shift, options.shift_factor), options.strength)
        check_begins_below_noise(levels, options.strength)
        edit = sized(*ask.size, levels)
        return [edit] if ask.picture else [ask.published_base(options.base_steps), edit]

    def run(self, job: Job) -> Generator[torch.Tensor]:
        stage, picture = job.plan[-1], job.picture
        if picture is None:
            z = self.base(job)
            yield z
            picture = self.decode(z)
        data = self.enlarge(picture, stage, by=job.options.enlargement)
        noise = self.fresh(job, stage)
        start = flow.interpolate(data, noise, stage.sigmas[0])
        yield self.follow(job, stage, start, None, job.options.toolkit)


class SDEditPipeline(SDEdit, OnFlux1):
    """SDEdit on FLUX.1."""


class Flux2SDEditPipeline(SDEdit, OnFlux2):
    """SDEdit on FLUX.2 [klein]."""
