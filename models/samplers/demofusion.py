"""DemoFusion for flow models: progressive stages of windows, made consistent by skip residuals and by
sub-grids that cover the whole image."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from uhr.models.ops.choices import Ring
from uhr.models.ops.patches.grid import Box
from uhr.models.ops.sizes import Size, whole_times
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.guidance import guided_plan
from uhr.models.samplers.core.options import StagedOptions
from uhr.models.samplers.core.pipelines.exports import pipelines_of
from uhr.models.samplers.core.plan import (
    BackboneCalls,
    SamplingPlan,
    SamplingRequest,
    SamplingStage,
    VaeCall,
    with_vae_calls,
)
from uhr.models.samplers.core.sampler import Sampler
from uhr.models.samplers.core.size_rule import SizeRule
from uhr.models.samplers.core.stages import base_stage, dense_stage, text_tokens, upper_levels
from uhr.models.samplers.multidiffusion import latent_windows, windowed_calls

if TYPE_CHECKING:
    import torch

    from uhr.models.samplers.core.conditioning import Conditions
    from uhr.models.samplers.core.engine import Engine, Velocity


class DemoFusionOptions(StagedOptions):
    """Options of demofusion, published for SDXL (2311.16973); defaults as in its code.

    residual_power, global_power, blur_power: 3, 1, 1: exponents of the cosine c with which the skip residual,
                the global path and the blur fade
    blur:       largest sigma of the blur in latents: 1 in the code, 0.8 in its README
    overlap:    share of a window's side by which the next one overlaps it
    jitter:     windows are shifted at random by up to a quarter of the overlap, in whole tokens
    jitter_seed: seed of the shifts, apart from the generator, so that a batch equals its images one by one
    ring:       the content of windows beyond the image's border (`choices.Ring`; the code: zeros)
    """

    residual_power: float = Field(default=3.0, ge=0)
    global_power: float = Field(default=1.0, ge=0)
    blur_power: float = Field(default=1.0, ge=0)
    blur: float = Field(default=1.0, gt=0)
    overlap: float = Field(default=0.5, ge=0, lt=1)
    jitter: bool = True
    jitter_seed: int = 0
    ring: Ring = Ring.NOISE


class DemoFusion(Sampler):
    """DemoFusion's stages 1x, 2x, ..., Sx, each of 50 steps from pure noise, for flow models: add_noise is
    (1 - sigma) z + sigma e, and there is no micro-conditioning.

    A step at 4x has 49 windows and 16 sub-grids: 50 + 50 (9 + 4) + 50 (25 + 9) + 50 (49 + 16) = 5,650 calls
    for 4K. Each side of the target is a whole multiple of the base's.
    """

    Options = DemoFusionOptions
    published_steps = 50

    def sizes(self, facts: ModelFacts, options: Any) -> SizeRule:
        return SizeRule(lambda size: facts.multiple * _times(facts, size), above=facts.native)

    def plan(self, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
        times = _times(facts, request.size)
        base = request.height // times, request.width // times
        levels = upper_levels(facts, request.steps, options.shift, options.shift_factor)
        stages = [_stage(facts, request, options, base, s, levels) for s in range(2, times + 1)]
        if not request.image:
            stages.insert(0, base_stage(facts, request, levels, base))
        vae_calls: list[tuple[VaeCall, ...]] = [()] * len(stages)
        if request.image:
            vae_calls[0] = (VaeCall("encode", *base),)
        vae_calls[-1] += (VaeCall("decode", *request.size),)
        return guided_plan(facts, request, options, with_vae_calls(stages, vae_calls))

    def run(self, engine: Engine, plan: SamplingPlan) -> Generator[torch.Tensor]:
        from uhr.models.samplers.core.passes import base_pass

        upper = plan.stages
        if engine.image is None:
            z = base_pass(engine, upper[0])
            yield z
            upper = upper[1:]
        else:
            z = engine.enlarge(engine.image, (upper[0].height // 2, upper[0].width // 2))
        anchor = z
        for times, stage in enumerate(upper, start=2):
            z = restandardised(_run_stage(engine, plan.options, stage, times, z), anchor)
            yield z


def _times(facts: ModelFacts, size: Size) -> int:
    """The side of a size over the base's, as a whole number."""
    return whole_times(size, facts.native, facts.multiple)


def _stage(
    facts: ModelFacts,
    request: SamplingRequest,
    options: DemoFusionOptions,
    base: Size,
    times: int,
    levels: Sequence[float],
) -> SamplingStage:
    """The stage at `times` the base's side, with its windows and times^2 sub-grids at every step."""
    size, steps = (times * base[0], times * base[1]), len(levels) - 1
    count = len(latent_windows(facts, size, options.overlap))
    calls = (
        windowed_calls(facts, request, size, steps * count),
        BackboneCalls(steps * times**2, facts.tokens(base), text_tokens(facts, request)),
    )
    return replace(dense_stage(facts, request, size, levels), calls=calls)


def _run_stage(
    engine: Engine, options: DemoFusionOptions, stage: SamplingStage, times: int, below: torch.Tensor
) -> torch.Tensor:
    """Run the stage at `times` the base's side from z of the stage below, and return its z."""
    import torch

    from uhr.models.ops import flow
    from uhr.models.ops.filters import bicubic, gaussian_blur

    noise = engine.draw_noise(stage)
    data = bicubic(below, *noise.shape[-2:])
    side = 2 * engine.facts.native_side
    boxes = latent_windows(engine.facts, stage.size, options.overlap)
    reach = 2 * (round(side * options.overlap) // 8) if options.jitter else 0
    draw = torch.Generator().manual_seed(options.jitter_seed)

    with engine.network(stage) as network:
        local = _jittered_windows(network, engine, options.ring, boxes, reach, draw)
        whole = _sub_grids(network, times)

        def velocity(x: torch.Tensor, sigma: float, step: int, conditions: Conditions) -> torch.Tensor:
            c = 0.5 * (1 + math.cos(math.pi * (1 - sigma)))
            share = c**options.residual_power
            z = (1 - share) * x + share * flow.interpolate(data, noise, sigma)
            v_local = local(z, sigma, step, conditions)
            width = options.blur * (0.99 * c**options.blur_power + 0.01)
            blurred = restandardised(gaussian_blur(z, width, radius=times - 1), z)
            v_whole = whole(blurred, sigma, step, conditions)
            share = c**options.global_power
            v = (1 - share) * v_local + share * v_whole
            # the step is taken from z: its distance from x is added
            return v + (z - x) / (stage.sigmas[step + 1] - sigma)

        return engine.integrate(stage, noise, velocity)


def _jittered_windows(
    velocity: Velocity,
    engine: Engine,
    ring: Ring,
    boxes: Sequence[Box],
    reach: int,
    draw: torch.Generator,
) -> Velocity:
    """The mean velocity of windows that are shifted by up to `reach`, an even number, at every step."""
    from uhr.models.samplers.core.velocities import ringed, window_mean

    if reach == 0:
        return window_mean(velocity, boxes)

    def local(z: torch.Tensor, sigma: float, step: int, conditions: Conditions) -> torch.Tensor:
        moved = [jittered(box, *z.shape[-2:], reach, draw) for box in boxes]
        around = ringed(engine, z, sigma, ring, reach)
        return window_mean(velocity, moved, ring=reach)(around, sigma, step, conditions)

    return local


def _sub_grids(velocity: Velocity, times: int) -> Velocity:
    """The velocity on times^2 interleaved sub-grids, each of the base's size."""
    import torch

    def whole(z: torch.Tensor, sigma: float, step: int, conditions: Conditions) -> torch.Tensor:
        found = torch.empty_like(z)
        for top in range(times):
            for left in range(times):
                part = z[..., top::times, left::times]
                found[..., top::times, left::times] = velocity(part, sigma, step, conditions)
        return found

    return whole


def jittered(box: Box, height: int, width: int, reach: int, draw: torch.Generator) -> Box:
    """Shift a box at random by up to `reach` in each direction, by even numbers, on a grid with a ring of
    that width around [height, width]. A box at a border only moves outwards, and one that spans an axis does
    not move: with an overlap of twice the reach every position stays covered."""
    import torch

    def move(first: bool, last: bool) -> int:
        low, high = (0 if last else -reach // 2), (0 if first else reach // 2)
        return 2 * int(torch.randint(low, high + 1, (), generator=draw))

    down = move(box.top == 0, box.bottom == height)
    right = move(box.left == 0, box.right == width)
    return Box(box.top + reach + down, box.left + reach + right, box.height, box.width)


def restandardised(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return x with the mean and standard deviation of `like`, over all but the first axis; a constant x gets
    only the mean."""
    import torch

    axes = tuple(range(1, x.ndim))
    deviation, mean = torch.std_mean(x, axes, correction=0, keepdim=True)
    to_deviation, to_mean = torch.std_mean(like, axes, correction=0, keepdim=True)
    return (x - mean) / deviation.clamp(min=1e-12) * to_deviation + to_mean


__getattr__ = pipelines_of(DemoFusion)
