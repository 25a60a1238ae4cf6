"""DemoFusion for flow models: progressive stages of windows, held together by skip residuals and by
sub-grids that see the whole picture."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import torch

from uhr.models import flow
from uhr.models.conditions import Conditions
from uhr.models.costs.work import Calls, Coding
from uhr.models.filters import bicubic, gaussian_blur
from uhr.models.patches import Box
from uhr.models.samplers.families import OnFlux1, OnFlux2
from uhr.models.samplers.multidiffusion import average, windowed_calls, windows
from uhr.models.samplers.options import DemoFusionOptions
from uhr.models.samplers.passes import Job
from uhr.models.samplers.staged import Staged
from uhr.models.sizes import whole_times
from uhr.models.stages import Ask, Stage, sized


class DemoFusion(Staged):
    """DemoFusion's stages 1x, 2x, ..., Sx, each of 50 steps from pure noise, for flow models: add_noise is
    (1 - sigma) z + sigma e, and there is no micro-conditioning.

    A step at 4x takes 49 windows and 16 sub-grids: 50 + 50 (9 + 4) + 50 (25 + 9) + 50 (49 + 16) = 5,650 calls
    for 4K. Each side of the target is a whole number of bases.
    """

    Options = DemoFusionOptions
    above_native = True
    published_steps = 50

    @classmethod
    def unit(cls, ask: Ask, options: Any) -> int:
        return ask.multiple * whole_times(ask.size, ask.native, ask.multiple)

    @classmethod
    def calls(cls, ask: Ask, options: Any, stage: Stage, text: int) -> tuple[Calls, ...]:
        if stage.name == "base":
            return super().calls(ask, options, stage, text)
        base = whole_times(ask.size, ask.native, ask.multiple)
        times = stage.height * base // ask.height
        whole = stage.steps * times**2
        tokens = stage.height * stage.width // (times * ask.multiple) ** 2
        (windows,) = windowed_calls(ask, options, stage, text)
        return replace(windows, count=windows.count - whole), Calls(whole, tokens, text)

    @classmethod
    def codings(cls, ask: Ask, options: Any, plan: Sequence[Stage]) -> list[tuple[Coding, ...]]:
        found: list[tuple[Coding, ...]] = [()] * len(plan)
        if ask.picture:
            found[0] = (Coding("encode", plan[0].height // 2, plan[0].width // 2),)
        return [*found[:-1], (*found[-1], Coding("decode", *plan[-1].size))]

    @classmethod
    def plan(cls, ask: Ask, options: Any) -> list[Stage]:
        times = whole_times(ask.size, ask.native, ask.multiple)
        height, width = ask.height // times, ask.width // times
        levels, side = ask.levels(options.shift, options.shift_factor), 2 * ask.native_side
        stages = []
        for s in range(2, times + 1):
            latents = (2 * s * height // ask.multiple, 2 * s * width // ask.multiple)
            calls = len(windows(latents, side, options.overlap)) + s**2
            stages.append(sized(s * height, s * width, levels, calls))
        return stages if ask.picture else [ask.base(levels, (height, width)), *stages]

    def run(self, job: Job) -> Generator[torch.Tensor]:
        first, *upper = job.plan
        if job.picture is None:
            z = self.base(job)
            yield z
        else:
            upper = job.plan
            z = self.enlarge(job.picture, sized(first.height // 2, first.width // 2, first.sigmas))
        anchor = z
        for times, stage in enumerate(upper, start=2):
            z = restandardised(self._stage(job, stage, times, z), anchor)
            yield z

    def _stage(self, job: Job, stage: Stage, times: int, below: torch.Tensor) -> torch.Tensor:
        """z at `times` the base's side, from that of the stage below."""
        options, noise = job.options, self.fresh(job, stage)
        data = bicubic(below, *noise.shape[-2:])
        boxes = windows((noise.shape[-2], noise.shape[-1]), 2 * job.native.side, options.overlap)
        reach = 2 * (round(2 * job.native.side * options.overlap) // 8) if options.jitter else 0
        draw = torch.Generator().manual_seed(options.jitter_seed)

        def velocity(x: torch.Tensor, sigma: float, step: int, said: Conditions) -> torch.Tensor:
            c = 0.5 * (1 + math.cos(math.pi * (1 - sigma)))
            share = c**options.residual_power
            z = (1 - share) * x + share * flow.interpolate(data, noise, sigma)
            local = self._local(job, z, sigma, said, boxes, reach, draw)
            width = options.blur * (0.99 * c**options.blur_power + 0.01)
            blurred = restandardised(gaussian_blur(z, width, radius=times - 1), z)
            whole = self._global(blurred, sigma, said, times)
            share = c**options.global_power
            v = (1 - share) * local + share * whole
            # the step is taken from z: its distance from x goes along
            return v + (z - x) / (stage.sigmas[step + 1] - sigma)

        return self.follow(job, stage, noise, velocity)

    def _local(
        self,
        job: Job,
        z: torch.Tensor,
        sigma: float,
        said: Conditions,
        boxes: Sequence[Box],
        reach: int,
        draw: torch.Generator,
    ) -> torch.Tensor:
        """The mean velocity of jittered windows; `reach` is even."""
        if reach == 0:
            return average(self, z, sigma, said, boxes)
        moved = [jittered(box, *z.shape[-2:], reach, draw) for box in boxes]
        around = self.ringed(job, z, sigma, job.options.ring, reach)
        return average(self, around, sigma, said, moved, ring=reach)

    def _global(self, z: torch.Tensor, sigma: float, said: Conditions, times: int) -> torch.Tensor:
        """The velocity on times^2 interleaved sub-grids, each of the base's size."""
        whole = torch.empty_like(z)
        for top in range(times):
            for left in range(times):
                part = z[..., top::times, left::times]
                whole[..., top::times, left::times] = self.field(part, sigma, said)
        return whole


def jittered(box: Box, height: int, width: int, reach: int, draw: torch.Generator) -> Box:
    """The box moved by up to `reach` each way, in even units, on a grid that has a ring of that width around
    [height, width]. A box at a border moves outwards alone, one that spans an axis not at all: with an
    overlap of twice the reach no place is left bare."""

    def move(first: bool, last: bool) -> int:
        low, high = (0 if last else -reach // 2), (0 if first else reach // 2)
        return 2 * int(torch.randint(low, high + 1, (), generator=draw))

    down = move(box.top == 0, box.bottom == height)
    right = move(box.left == 0, box.right == width)
    return Box(box.top + reach + down, box.left + reach + right, box.height, box.width)


def restandardised(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """x with the mean and standard deviation that `like` has, over all but the first axis; a constant x
    gets the mean alone."""
    axes = tuple(range(1, x.ndim))
    deviation, mean = torch.std_mean(x, axes, correction=0, keepdim=True)
    to_deviation, to_mean = torch.std_mean(like, axes, correction=0, keepdim=True)
    return (x - mean) / deviation.clamp(min=1e-12) * to_deviation + to_mean


class DemoFusionPipeline(DemoFusion, OnFlux1):
    """DemoFusion on FLUX.1."""


class Flux2DemoFusionPipeline(DemoFusion, OnFlux2):
    """DemoFusion on FLUX.2 [klein]."""
