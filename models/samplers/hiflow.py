"""HiFlow: each stage is aligned with the path of the stage below in initialisation, direction and
acceleration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from uhr.models.ops.choices import Ring, StageShift
from uhr.models.ops.sizes import cascade
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.guidance import UpperGuidance, guided_plan, upper_guidance
from uhr.models.samplers.core.options import DenseOptions, PerStage, pick
from uhr.models.samplers.core.pipelines.exports import pipelines_of
from uhr.models.samplers.core.plan import (
    SamplingPlan,
    SamplingRequest,
    SamplingStage,
    VaeCall,
    with_vae_calls,
)
from uhr.models.samplers.core.sampler import Sampler
from uhr.models.samplers.core.size_rule import SizeRule
from uhr.models.samplers.core.stages import (
    after_strength,
    base_stage,
    dense_stage,
    from_level,
    upper_levels,
)

if TYPE_CHECKING:
    import torch

    from uhr.models.ops.alignment import LowPass
    from uhr.models.samplers.core.conditioning import Conditions
    from uhr.models.samplers.core.engine import Engine, Velocity

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
"""The values of options that are None."""

GUIDANCE: Mapping[str, PerStage] = {"paper": (), "code": (4.5, 6.0)}
"""Guidance of a preset's stages above the base; empty is the call's own."""


class HiFlowOptions(DenseOptions):
    """Options of hiflow; None is the preset's value.

    preset:       paper is HiFlow v2, code its repository
    cascade:      sides over the base's: 2, 3, 4 in the paper, 2, 4 in the code
    starts:       where the stages enter the schedule: 0.6, 0.3, 0.3 in the paper (its tau), the last 16 and
                  10 of 30 steps in the code
    starts_are:   levels: at the first level that is at most this (paper); shares of the steps that are left
                  (code)
    start_from:   reference: the enlarged clean estimate of that step (eq. 7, paper); picture: the last
                  stage's image, enlarged and sharpened in pixels (code)
    low_pass:     butterworth, at `cutoff`, or haar
    cutoff:       0.4 in the paper, 0.2 in the code; 1 is an axis' Nyquist frequency
    direction:    alpha at a stage's first step (1 in the paper, 1 and 0.25 in the code)
    acceleration: beta there (1 in the paper, 0.5 in the code)
    fade:         both fall as sigma / start (t / tau, paper) or linearly over the stage's steps (code)
    guidance:     guidance of the stages, if the backbone embeds it: 4.5 and 6 in the code; the paper gives
                  none, so it is the call's own. guidance_high overrides it with one number
    reference:    estimates are enlarged as latents (the code's default) or in pixels, through the VAE
    sharpening:   sigma of the Gaussian for images that are enlarged in pixels. The code draws it from
                  (0.1, 2) at every call, so that no two of its runs agree
    swin, ring:   swin patchify on every other step (code; the paper does not mention it) and the content of
                  its ring: zeros in the code
    shift:        shift of all stages, including the base. For the paper the default: static 3, whose level
                  after 20 of 30 steps is its tau 0.6; for the code native (factor 3.158), since it sets its
                  static shift on the wrong object
    """

    preset: Literal["paper", "code"] = "paper"
    cascade: PerStage | None = None
    starts: PerStage | None = Field(default=None, min_length=1)
    starts_are: Literal["levels", "shares"] | None = None
    start_from: Literal["reference", "picture"] | None = None
    low_pass: Literal["butterworth", "haar"] = "butterworth"
    cutoff: float | None = Field(default=None, gt=0)
    direction: PerStage | None = Field(default=None, min_length=1)
    acceleration: PerStage | None = Field(default=None, min_length=1)
    fade: Literal["sigma", "linear"] | None = None
    guidance: PerStage | None = None
    reference: Literal["latents", "pixels"] = "latents"
    sharpening: float = Field(default=1.0, gt=0)
    swin: bool = True
    ring: Ring | None = None


class HiFlow(Sampler):
    """HiFlow (2504.06232): a virtual reference path at high resolution from the clean estimates of the stage
    below, and three alignments with it (`alignment.py`): initialisation, direction, acceleration.

    Calls at 30 steps and 4K: 30 + 10 + 3 + 3 in the paper, 30 + 16 + 10 in the code. Estimates are stored
    before alignment. If an image replaces the base pass, its latents are the reference at every step of the
    first stage, as if the base's path were a straight line.

    Differences to the code: swin's ring is only around the backbone's call, so that filters and references
    never see it (the code pads them too, and crops the ring again).
    """

    Options = HiFlowOptions
    published_steps = 30

    def sizes(self, facts: ModelFacts, options: Any) -> SizeRule:
        return SizeRule.multiples(facts.multiple, above=facts.native)

    def plan(self, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
        upper = _guidance(facts, options)
        options = resolved(options)
        levels = upper_levels(facts, request.steps, options.shift, options.shift_factor)
        base = base_stage(facts, request, levels)
        enter = from_level if options.starts_are == "levels" else after_strength
        stages = [
            dense_stage(
                facts, request, size, enter(levels, pick(options.starts, i)), options.toolkit, options.swin
            )
            for i, size in enumerate(cascade(request.size, base.size, options.cascade, facts.multiple))
        ]
        stages = stages if request.image else [base, *stages]
        coded = with_vae_calls(stages, _vae_calls(stages, options, request.image))
        return guided_plan(facts, request, options, coded, upper)

    def run(self, engine: Engine, plan: SamplingPlan) -> Generator[torch.Tensor]:
        from uhr.models.samplers.core.passes import base_pass

        reference, stages, z = Reference(engine, plan.options), plan.stages, None
        if engine.image is None:
            found: list[torch.Tensor] = []
            base, *stages = plan.stages
            z = base_pass(engine, base, found.append)
            yield z
            reference.update({base.steps - step: data for step, data in enumerate(found)})
        for index, stage in enumerate(stages):
            z = _run_stage(engine, plan.options, (index, stage), reference, z)
            yield z


def resolved(options: HiFlowOptions) -> Any:
    """Return the options with the preset's values in place of None."""
    preset = PRESETS[options.preset]
    missing = {key: value for key, value in preset.items() if getattr(options, key) is None}
    return options.model_copy(update=missing)


def _guidance(facts: ModelFacts, options: HiFlowOptions) -> UpperGuidance:
    """The guidance of the option or the preset, by stage, unless `guidance_high` sets one number."""
    if options.guidance_high is not None or facts.guidance != "embedded":
        return upper_guidance(facts, options)
    if options.guidance is None:
        return UpperGuidance(published=GUIDANCE[options.preset])
    return UpperGuidance("guidance", options.guidance)


def _vae_calls(stages: Sequence[SamplingStage], options: Any, image: bool) -> list[list[VaeCall]]:
    """The VAE's passes, by resolved options."""
    found: list[list[VaeCall]] = [[] for _ in stages]
    for index, stage in enumerate(stages):
        if image:
            found[index].append(VaeCall("encode", *stage.size))
        if index == 0:
            # the input image is both reference and start
            again = image and options.start_from == "picture"
            found[0] += [VaeCall("encode", *stage.size)] if again else []
            continue
        below = stages[index - 1]
        if options.reference == "pixels":
            # at every step whose estimate is of the stage below, and once more for the start
            again = stage.steps + (options.start_from == "reference")
            found[index].append(VaeCall("decode", *below.size, again))
            found[index].append(VaeCall("encode", *stage.size, again))
        if options.start_from == "picture":
            found[index - 1].append(VaeCall("decode", *below.size))
            found[index].append(VaeCall("encode", *stage.size))
    found[-1].append(VaeCall("decode", *stages[-1].size))
    return found


class Reference:
    """Clean estimates of the stages below, by the number of steps that are left in the schedule, which all
    stages share. A stage's own estimates replace earlier ones; an input image is the estimate of every
    step."""

    def __init__(self, engine: Engine, options: Any) -> None:
        self._engine, self._options = engine, options
        self._estimates: dict[int, torch.Tensor] = {}

    def update(self, estimates: Mapping[int, torch.Tensor]) -> None:
        self._estimates.update(estimates)

    def over(self, stage: SamplingStage) -> Callable[[int], torch.Tensor]:
        """Return R on a stage's grid: z by the number of steps that are left."""
        from uhr.models.ops.filters import bicubic

        engine, options = self._engine, self._options
        encoded = None if engine.image is None else engine.enlarge(engine.image, stage.size)

        def at(left: int) -> torch.Tensor:
            if left not in self._estimates:
                assert encoded is not None
                return encoded
            if options.reference == "pixels":
                images = engine.decode(self._estimates[left])
                return engine.enlarge(images, stage.size, options.sharpening)
            return bicubic(self._estimates[left], *engine.latent_size(stage.size))

        return at


def _run_stage(
    engine: Engine,
    options: Any,
    numbered: tuple[int, SamplingStage],
    reference: Reference,
    below: torch.Tensor | None,
) -> torch.Tensor:
    """Run a stage above the base (numbered from 0) and return its z; `below` is the z of the stage below.
    Stores its estimates in `reference`."""
    from uhr.models.ops import flow
    from uhr.models.samplers.core.velocities import swin_patchify

    (index, stage), estimates = numbered, {}
    aims = reference.over(stage)
    if options.start_from == "reference":
        data = aims(stage.steps)
    else:
        pixels = engine.image if below is None else engine.decode(below)
        assert pixels is not None
        data = engine.enlarge(pixels, stage.size, options.sharpening)
    start = flow.interpolate(data, engine.draw_noise(stage), stage.sigmas[0])
    with engine.network(stage, alone="toolkit.ntk=1") as velocity:
        if options.swin:
            velocity = swin_patchify(velocity, engine, options.ring)
        followed = aligned(velocity, options, (index, stage), aims, estimates)
        z = engine.integrate(stage, start, followed)
    reference.update(estimates)
    return z


def aligned(
    velocity: Velocity,
    options: Any,
    numbered: tuple[int, SamplingStage],
    aims: Callable[[int], torch.Tensor],
    estimates: dict[int, torch.Tensor],
) -> Velocity:
    """Return the velocity with its direction and acceleration aligned with `aims`; stores each step's clean
    estimate, before alignment, in `estimates`."""
    from uhr.models.ops import flow
    from uhr.models.ops.alignment import Acceleration, align_direction
    from uhr.models.ops.projection import velocity_towards

    index, stage = numbered
    alpha, beta = pick(options.direction, index), pick(options.acceleration, index)
    low_pass, acceleration = _low_pass(options), Acceleration()

    def follow(z: torch.Tensor, sigma: float, step: int, conditions: Conditions) -> torch.Tensor:
        v = velocity(z, sigma, step, conditions)
        data, aim = flow.data_estimate(z, v, sigma), aims(stage.steps - step)
        estimates[stage.steps - step] = data
        fade = sigma / stage.sigmas[0] if options.fade == "sigma" else 1 - step / stage.steps
        data = align_direction(data, aim, alpha * fade, low_pass)
        return velocity_towards(z, acceleration.align(data, aim, sigma, beta * fade), sigma)

    return follow


def _low_pass(options: Any) -> LowPass:
    from uhr.models.ops.filters import butterworth_low_pass, haar_low_pass

    if options.low_pass == "haar":
        return haar_low_pass
    return functools.partial(butterworth_low_pass, cutoff=options.cutoff)


__getattr__ = pipelines_of(HiFlow)
