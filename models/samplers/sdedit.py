"""SDEdit: an image is enlarged, noised to an intermediate level, and denoised from there."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.guidance import guided_plan, upper_guidance
from uhr.models.samplers.core.options import DenseOptions
from uhr.models.samplers.core.pipelines.exports import pipelines_of
from uhr.models.samplers.core.plan import SamplingPlan, SamplingRequest, default_vae_calls
from uhr.models.samplers.core.sampler import Sampler
from uhr.models.samplers.core.stages import (
    after_strength,
    check_begins_below_noise,
    dense_stage,
    model_base,
    upper_levels,
)

if TYPE_CHECKING:
    import torch

    from uhr.models.samplers.core.engine import Engine

GUIDANCE = 7.5
"""Guidance of the stage above the base, published for FLUX.1-dev."""


class SDEditOptions(DenseOptions):
    """Options of sdedit.

    strength:    share of the steps that are taken, in (0, 1): 0.7 is CLEAR's recipe for high resolutions
    base_steps:  steps of the base pass; None is the number of the model's card
    enlargement: bicubic, as in CLEAR's script, or lanczos, with which diffusers' FluxImg2ImgPipeline resizes
                 an image that does not fit
    """

    strength: float = Field(default=0.7, gt=0, lt=1)
    base_steps: int | None = Field(default=None, gt=0)
    enlargement: Literal["bicubic", "lanczos"] = "bicubic"


class SDEdit(Sampler):
    """SDEdit (Meng et al. 2108.01073) in the form of CLEAR: a base image, or an input image, is enlarged in
    pixels and encoded, noised to the level of the strength, and denoised by the rest of the schedule.

    Published for FLUX.1-dev: 20 steps, guidance 7.5, NTK 10 and proportional attention, static shift 3. At
    strength 0.7 these are 14 calls from level 0.875, besides those of the base pass. The strength counts
    steps, as FluxImg2Img does; the path begins at the shifted level.
    """

    Options = SDEditOptions
    published_steps = 20

    def plan(self, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
        whole = upper_levels(facts, request.steps, options.shift, options.shift_factor)
        levels = after_strength(whole, options.strength)
        check_begins_below_noise(levels, options.strength)
        edit = dense_stage(facts, request, request.size, levels, options.toolkit)
        stages = [edit] if request.image else [model_base(facts, request, options.base_steps), edit]
        upper = upper_guidance(facts, options, embedded=GUIDANCE)
        return guided_plan(facts, request, options, default_vae_calls(stages, request.image), upper)

    def run(self, engine: Engine, plan: SamplingPlan) -> Generator[torch.Tensor]:
        from uhr.models.ops import flow
        from uhr.models.samplers.core.passes import base_pass

        stage, image = plan.last, engine.image
        if image is None:
            z = base_pass(engine, plan.stages[0])
            yield z
            image = engine.decode(z)
        data = engine.enlarge(image, stage.size, by=plan.options.enlargement)
        start = flow.interpolate(data, engine.draw_noise(stage), stage.sigmas[0])
        with engine.network(stage, alone="toolkit.ntk=1") as velocity:
            z = engine.integrate(stage, start, velocity)
        yield z


__getattr__ = pipelines_of(SDEdit)
