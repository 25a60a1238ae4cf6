"""MultiDiffusion: one image from overlapping windows of the native size, averaged at every step."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from uhr.models.ops.patches.grid import Box, grid
from uhr.models.ops.sizes import Size
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.guidance import guided_plan
from uhr.models.samplers.core.options import StagedOptions
from uhr.models.samplers.core.pipelines.exports import pipelines_of
from uhr.models.samplers.core.plan import BackboneCalls, SamplingPlan, SamplingRequest, default_vae_calls
from uhr.models.samplers.core.sampler import Sampler
from uhr.models.samplers.core.stages import (
    after_strength,
    check_begins_below_noise,
    dense_stage,
    model_base,
    text_tokens,
    upper_levels,
)

if TYPE_CHECKING:
    import torch

    from uhr.models.samplers.core.engine import Engine

IMAGE_STRENGTH = 0.7
"""Default strength with an input image: not published, but CLEAR's value for SDEdit."""


class MultiDiffusionOptions(StagedOptions):
    """Options of multidiffusion.

    overlap:    share of a window's side by which the next one overlaps it (paper: half, or more)
    strength:   1 begins at pure noise, as published; less begins at the enlarged base image, as SDEdit does.
                None is 1, or 0.7 with an input image, the default of sdedit (not published)
    base_steps: steps of the pass that makes the base image; None is the number of the model's card
    """

    overlap: float = Field(default=0.5, ge=0, lt=1)
    strength: float | None = Field(default=None, gt=0, le=1)
    base_steps: int | None = Field(default=None, gt=0)


def windows(size: Size, window: int, overlap: float) -> list[Box]:
    """Return square windows of side `window` over a grid of `size`, each overlapping the next by at least the
    share `overlap`. Windows begin at even positions, so that they keep the 2 x 2 packing."""
    # an even overlap of an even window: the step is even too
    shared = 2 * round(window * overlap / 2)
    return grid(*size, window, min(shared, window - 2), multiple=2)


def latent_windows(facts: ModelFacts, size: Size, overlap: float) -> list[Box]:
    """Return windows of the native size over the latents of an image of `size` px."""
    rows, columns = facts.grid(size)
    return windows((2 * rows, 2 * columns), 2 * facts.native_side, overlap)


def windowed_calls(facts: ModelFacts, request: SamplingRequest, size: Size, count: int) -> BackboneCalls:
    """Return `count` calls over one window each; a smaller image is one window."""
    side, (rows, columns) = facts.native_side, facts.grid(size)
    return BackboneCalls(count, min(side, rows) * min(side, columns), text_tokens(facts, request))


class MultiDiffusion(Sampler):
    """MultiDiffusion (Bar-Tal et al. 2302.08113) for flow models: Euler on the mean of the windows'
    velocities, which is the mean of their steps. 50 steps, as in the paper; 9 windows at 2K, 49 at 4K.

    At the native size it is the plain sampler. It was published for Stable Diffusion; there are no published
    numbers for FLUX.
    """

    Options = MultiDiffusionOptions
    published_steps = 50

    def plan(self, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
        strength = options.strength or (IMAGE_STRENGTH if request.image else 1.0)
        whole = upper_levels(facts, request.steps, options.shift, options.shift_factor)
        levels, size = after_strength(whole, strength), request.size
        boxes = latent_windows(facts, size, options.overlap)
        if request.image or strength < 1:
            check_begins_below_noise(levels, strength)
        stage = replace(
            dense_stage(facts, request, size, levels),
            calls=(windowed_calls(facts, request, size, (len(levels) - 1) * len(boxes)),),
            boxes=tuple(box.scaled(facts.vae_factor) for box in boxes),
        )
        without_base = request.image or strength == 1
        stages = [stage] if without_base else [model_base(facts, request, options.base_steps), stage]
        return guided_plan(facts, request, options, default_vae_calls(stages, request.image))

    def run(self, engine: Engine, plan: SamplingPlan) -> Generator[torch.Tensor]:
        from uhr.models.ops import flow
        from uhr.models.samplers.core.passes import base_pass
        from uhr.models.samplers.core.velocities import window_mean

        stage, image = plan.last, engine.image
        if plan.has_base:
            z = base_pass(engine, plan.stages[0])
            yield z
            image = engine.decode(z)
        z = engine.draw_noise(stage)
        if image is not None:
            z = flow.interpolate(engine.enlarge(image, stage.size), z, stage.sigmas[0])
        boxes = latent_windows(plan.facts, stage.size, plan.options.overlap)
        with engine.network(stage) as velocity:
            z = engine.integrate(stage, z, window_mean(velocity, boxes))
        yield z


__getattr__ = pipelines_of(MultiDiffusion)
