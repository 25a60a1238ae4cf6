"""HiFlow: each stage follows the path of the stage below it, in where it starts, where it heads, and how it
turns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch

from uhr.models import flow
from uhr.models.alignment import Acceleration, LowPass, align_direction
from uhr.models.conditions import Conditions
from uhr.models.costs.work import Calls, Coding, swung_calls
from uhr.models.filters import bicubic, butterworth_low_pass, haar_low_pass
from uhr.models.projection import velocity_towards
from uhr.models.samplers.families import OnFlux1, OnFlux2
from uhr.models.samplers.options import HiFlowOptions
from uhr.models.samplers.passes import Job
from uhr.models.samplers.staged import Staged
from uhr.models.sizes import cascade
from uhr.models.spec import GuidanceKind
from uhr.models.stages import Ask, Stage, StageShift, after_strength, from_level, sized
from uhr.models.swin import Ring

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "cascade": (2, 3, 4),
        "starts": (0.6, 0.3, 0.3),
        "starts_are": "levels",
        "start_from": "reference",
        "cutoff": 0.4,
        "direction": (1.0,),
        "acceleration": (1.0,),
        "fade": "sigma",
        "ring": Ring.NOISE,
        "shift": None,
    },
    "code": {
        "cascade": (2, 4),
        "starts": (16 / 30, 10 / 30),
        "starts_are": "shares",
        "start_from": "picture",
        "cutoff": 0.2,
        "direction": (1.0, 0.25),
        "acceleration": (0.5,),
        "fade": "linear",
        "ring": Ring.ZEROS,
        "shift": StageShift.NATIVE,
    },
}
"""The values of the options that say nothing themselves."""

GUIDANCE: Mapping[str, Sequence[float]] = {"paper": (), "code": (4.5, 6.0)}
"""Of a preset's stages above the base; none is the call's own."""


class Reference:
    """Clean estimates of the stages below, by the number of steps that are left in the schedule that all
    stages share. A stage's own take the place of those from before; a picture stands for all steps."""

    def __init__(self, picture: torch.Tensor | None) -> None:
        self._picture = picture
        self._estimates: dict[int, torch.Tensor] = {}

    def update(self, estimates: Mapping[int, torch.Tensor]) -> None:
        self._estimates.update(estimates)

    def over(self, stage: Stage, sampler: HiFlow, options: Any) -> Callable[[int], torch.Tensor]:
        """R over a stage's grid: z by the number of steps that are left."""
        picture = self._picture
        encoded = None if picture is None else sampler.enlarge(picture, stage)

        def at(left: int) -> torch.Tensor:
            if left not in self._estimates:
                assert encoded is not None
                return encoded
            if options.reference == "pixels":
                return sampler.enlarge(sampler.decode(self._estimates[left]), stage, options.sharpening)
            rows, columns = sampler.grid(*stage.size)
            return bicubic(self._estimates[left], 2 * rows, 2 * columns)

        return at


class HiFlow(Staged):
    """HiFlow (2504.06232): a virtual reference path at high resolution out of the clean estimates of the
    stage below, and three alignments with it (`alignment.py`): initialisation, direction, acceleration.

    Calls at 30 steps and 4K: 30 + 10 + 3 + 3 in the paper, 30 + 16 + 10 in the code. Estimates are stored as
    the backbone gives them, before alignment. With a picture in place of the base pass its latents are the
    reference at every step of the first stage, as if the base's path were a straight line.

    Differences to the code: swin's ring is around the backbone's call alone, so that filters and references
    never see it (the code pads them too, and crops the ring off again).
    """

    Options = HiFlowOptions
    above_native = True
    published_steps = 30

    @classmethod
    def resolve(cls, options: Any) -> Any:
        preset = PRESETS[options.preset]
        told = {key: value for key, value in preset.items() if getattr(options, key) is None}
        return options.model_copy(update=told)

    @classmethod
    def guidance_option(cls, kind: GuidanceKind, options: Any, index: int = 0) -> tuple[str, Any] | None:
        if options.guidance_high is None and options.guidance and kind == "embedded":
            return "guidance", _pick(options.guidance, index)
        return super().guidance_option(kind, options, index)

    @classmethod
    def guidance_above(cls, kind: GuidanceKind, options: Any, index: int) -> float | None:
        """The preset's, which rises from stage to stage."""
        preset = GUIDANCE[options.preset] if options.guidance is None else ()
        return _pick(preset, index) if preset and kind == "embedded" else None

    @classmethod
    def calls(cls, ask: Ask, options: Any, stage: Stage, text: int) -> tuple[Calls, ...]:
        return swung_calls(ask, options, stage, text)

    @classmethod
    def codings(cls, ask: Ask, options: Any, plan: Sequence[Stage]) -> list[tuple[Coding, ...]]:
        found: list[list[Coding]] = [[] for _ in plan]
        for index, stage in enumerate(plan):
            if ask.picture:
                found[index].append(Coding("encode", *stage.size))
            if index == 0:
                # the given picture is reference and start
                again = ask.picture and options.start_from == "picture"
                found[0] += [Coding("encode", *stage.size)] if again else []
                continue
            if options.reference == "pixels":
                below = plan[index - 1]
                # at every step whose estimate is of the stage below, and once more to begin with
                again = stage.steps + (options.start_from == "reference")
                found[index].append(Coding("decode", *below.size, again))
                found[index].append(Coding("encode", *stage.size, again))
            if options.start_from == "picture":
                found[index - 1].append(Coding("decode", *plan[index - 1].size))
                found[index].append(Coding("encode", *stage.size))
        found[-1].append(Coding("decode", *plan[-1].size))
        return [tuple(codings) for codings in found]

    @classmethod
    def plan(cls, ask: Ask, options: Any) -> list[Stage]:
        levels = ask.levels(options.shift, options.shift_factor)
        base = ask.base(levels)
        sizes = cascade(ask.size, base.size, options.cascade, ask.multiple)
        enter = from_level if options.starts_are == "levels" else after_strength
        stages = [sized(*size, enter(levels, _pick(options.starts, i))) for i, size in enumerate(sizes)]
        return stages if ask.picture else [base, *stages]

    def run(self, job: Job) -> Generator[torch.Tensor]:
        reference, stages, z = Reference(job.picture), job.plan, None
        if job.picture is None:
            found: list[torch.Tensor] = []
            z = self.base(job, found.append)
            yield z
            base, *stages = stages
            reference.update({base.steps - step: data for step, data in enumerate(found)})
        for index, stage in enumerate(stages):
            z = self._stage(job, index, stage, reference, z)
            yield z

    def _stage(
        self, job: Job, index: int, stage: Stage, reference: Reference, below: torch.Tensor | None
    ) -> torch.Tensor:
        """z of a stage above the base; `below` is that of the one below it. Leaves its estimates in
        `reference`."""
        options, aims = job.options, reference.over(stage, self, job.options)
        alpha, beta = _pick(options.direction, index), _pick(options.acceleration, index)
        low_pass, acceleration = _low_pass(options), Acceleration()
        estimates: dict[int, torch.Tensor] = {}

        def velocity(z: torch.Tensor, sigma: float, step: int, said: Conditions) -> torch.Tensor:
            v = self.swung(job, z, sigma, step, said) if options.swin else self.field(z, sigma, said)
            data, aim = flow.data_estimate(z, v, sigma), aims(stage.steps - step)
            estimates[stage.steps - step] = data
            fade = sigma / stage.sigmas[0] if options.fade == "sigma" else 1 - step / stage.steps
            data = align_direction(data, aim, alpha * fade, low_pass)
            return velocity_towards(z, acceleration.align(data, aim, sigma, beta * fade), sigma)

        if options.start_from == "reference":
            data = aims(stage.steps)
        else:
            pixels = job.picture if below is None else self.decode(below)
            assert pixels is not None
            data = self.enlarge(pixels, stage, options.sharpening)
        start = flow.interpolate(data, self.fresh(job, stage), stage.sigmas[0])
        z = self.follow(job, stage, start, velocity, options.toolkit)
        reference.update(estimates)
        return z


def _pick(values: Sequence[float], index: int) -> float:
    return values[min(index, len(values) - 1)]


def _low_pass(options: Any) -> LowPass:
    if options.low_pass == "haar":
        return haar_low_pass
    return functools.partial(butterworth_low_pass, cutoff=options.cutoff)


class HiFlowPipeline(HiFlow, OnFlux1):
    """HiFlow on FLUX.1."""


class Flux2HiFlowPipeline(HiFlow, OnFlux2):
    """HiFlow on FLUX.2 [klein]."""
