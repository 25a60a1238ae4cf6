"""MultiDiffusion: one picture out of overlapping windows of the native size, averaged at every step."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch

from uhr.models import flow
from uhr.models.conditions import Conditions
from uhr.models.costs.work import Calls
from uhr.models.patches import Box, Canvas, grid
from uhr.models.samplers.families import OnFlux1, OnFlux2
from uhr.models.samplers.options import MultiDiffusionOptions
from uhr.models.samplers.passes import Job, Passes
from uhr.models.samplers.staged import Staged
from uhr.models.stages import Ask, Stage, after_strength, check_begins_below_noise, sized


def windows(size: tuple[int, int], window: int, overlap: float) -> list[Box]:
    """Square windows of side `window` over a grid of `size`, each over at least a share `overlap` of the
    next; in units of which windows begin at even ones, so that they keep the 2 x 2 packing."""
    # an even overlap of an even window: the step is even too
    shared = 2 * round(window * overlap / 2)
    return grid(*size, window, min(shared, window - 2), multiple=2)


def average(
    pipeline: Passes, z: torch.Tensor, sigma: float, said: Conditions, boxes: Sequence[Box], ring: int = 0
) -> torch.Tensor:
    """The guided velocity at z as the mean of the windows' over each place. Every window's positions count
    from 0, as those of a picture of its own. With a `ring`, that many positions around z are seen by the
    windows and left out of the result."""
    batch, channels, height, width = z.shape
    canvas = Canvas(batch, channels, height - 2 * ring, width - 2 * ring, z.device)
    for box in boxes:
        top, left = max(ring - box.top, 0), max(ring - box.left, 0)
        tall = min(box.height, height - ring - box.top) - top
        wide = min(box.width, width - ring - box.left) - left
        part = Box(top, left, tall, wide).crop(pipeline.field(box.crop(z), sigma, said))
        canvas.add(Box(box.top + top - ring, box.left + left - ring, tall, wide), part)
    return canvas.result()


def windowed_calls(ask: Ask, options: Any, stage: Stage, text: int) -> tuple[Calls, ...]:
    """Those of a stage whose every call is over one window; a smaller stage is one window."""
    side = ask.native_side
    tokens = min(side, stage.height // ask.multiple) * min(side, stage.width // ask.multiple)
    return (Calls(stage.steps * stage.calls, tokens, text),)


OF_PICTURES = 0.7
"""Strength with a picture of one's own where none is named: ours, by that of SDEdit as CLEAR takes it."""


class MultiDiffusion(Staged):
    """MultiDiffusion (Bar-Tal et al. 2302.08113) for flow models: Euler on the mean of the windows'
    velocities, which is the mean of their steps. 50 steps, as in the paper; 9 windows at 2K, 49 at 4K.

    At the native size it is the plain sampler. Published for Stable Diffusion: nobody has given numbers for
    FLUX.
    """

    Options = MultiDiffusionOptions
    published_steps = 50

    @classmethod
    def calls(cls, ask: Ask, options: Any, stage: Stage, text: int) -> tuple[Calls, ...]:
        return windowed_calls(ask, options, stage, text)

    @classmethod
    def plan(cls, ask: Ask, options: Any) -> list[Stage]:
        strength = options.strength or (OF_PICTURES if ask.picture else 1.0)
        levels = after_strength(ask.levels(options.shift, options.shift_factor), strength)
        boxes = windows((2 * ask.grid[0], 2 * ask.grid[1]), 2 * ask.native_side, options.overlap)
        stage = sized(*ask.size, levels, len(boxes))
        if ask.picture or strength < 1:
            check_begins_below_noise(levels, strength)
        alone = ask.picture or strength == 1
        return [stage] if alone else [ask.published_base(options.base_steps), stage]

    def run(self, job: Job) -> Generator[torch.Tensor]:
        stage, picture = job.plan[-1], job.picture
        if len(job.plan) > 1:
            z = self.base(job)
            yield z
            picture = self.decode(z)
        z = self.fresh(job, stage)
        if picture is not None:
            z = flow.interpolate(self.enlarge(picture, stage), z, stage.sigmas[0])
        boxes = windows((z.shape[-2], z.shape[-1]), 2 * job.native.side, job.options.overlap)
        self.pieces = [box.scaled(self.vae_scale_factor) for box in boxes]

        def velocity(z: torch.Tensor, sigma: float, step: int, said: Conditions) -> torch.Tensor:
            return average(self, z, sigma, said, boxes)

        yield self.follow(job, stage, z, velocity)


class MultiDiffusionPipeline(MultiDiffusion, OnFlux1):
    """MultiDiffusion on FLUX.1."""


class Flux2MultiDiffusionPipeline(MultiDiffusion, OnFlux2):
    """MultiDiffusion on FLUX.2 [klein]."""
