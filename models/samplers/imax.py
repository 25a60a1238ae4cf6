"""I-Max: from pure noise at the target's size, moved towards an enlarged base image by projected flow."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from uhr.models.ops.choices import Projection, Ring
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.guidance import guided_plan, upper_guidance
from uhr.models.samplers.core.options import DenseOptions
from uhr.models.samplers.core.pipelines.exports import pipelines_of
from uhr.models.samplers.core.plan import SamplingPlan, SamplingRequest, default_vae_calls
from uhr.models.samplers.core.sampler import Sampler
from uhr.models.samplers.core.size_rule import SizeRule
from uhr.models.samplers.core.stages import base_stage, dense_stage, upper_levels
from uhr.models.samplers.core.toolkit import Toolkit

if TYPE_CHECKING:
    import torch

    from uhr.models.samplers.core.conditioning import Conditions
    from uhr.models.samplers.core.engine import Engine, Velocity

GUIDANCE = 7.0
"""Guidance of the stage above the base, from the official code for FLUX.1-dev."""


class IMaxOptions(DenseOptions):
    """Options of imax.

    projection:   how the projection fades (`choices.Projection`): cosine_decay is the official README's and
                  the default, cosine_shift the official function's; or constant
    shift_factor: 6, as in the README: it had an effect in diffusers up to 0.31, and later releases ignore it
    toolkit:      as in the official function: repeated text, and NTK frequencies clipped from below
    swin, ring:   swin patchify on every other step, and the content of its ring (`choices.Ring`; the code:
                  zeros)
    base_steps:   steps of the base pass; None is as many as above it (30 in the code)
    base_shift:   factor of the base pass' static shift
    sample:       the reference is a sample of the VAE's posterior, as in the code, not its mean
    """

    shift_factor: float = Field(default=6.0, gt=0)
    toolkit: Toolkit = Toolkit(ntk_floor=True, text_duplication=True)
    projection: Projection = Projection.COSINE_DECAY
    swin: bool = True
    ring: Ring = Ring.NOISE
    base_steps: int | None = Field(default=None, gt=0)
    base_shift: float = Field(default=3.0, gt=0)
    sample: bool = True


class IMax(Sampler):
    """I-Max (2410.07536), with the values of its code for FLUX.1-dev: base of 30 steps at guidance 3.5 and
    shift 3; decoded, enlarged by bicubic interpolation and encoded; then 30 steps from pure noise at guidance
    7 and shift 6. That is 60 calls; the official function's default is 20 steps above the base, not its
    README's 30.

    Differences to the code: the base has the target's aspect ratio at about the native area, where the code
    divides the target by a whole number (the same for 2K and 4K squares); float32 levels; no 1e-6 in
    denominators. The Haar blocks are shifted with swin's grid as in the code, but the ring is only around the
    backbone's call: in the code its zeros affect the border through the blocks.
    """

    Options = IMaxOptions
    published_steps = 30

    def sizes(self, facts: ModelFacts, options: Any) -> SizeRule:
        return SizeRule.multiples(facts.multiple, above=facts.native)

    def plan(self, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
        levels = upper_levels(facts, request.steps, options.shift, options.shift_factor)
        stages = [dense_stage(facts, request, request.size, levels, options.toolkit, options.swin)]
        if not request.image:
            steps = options.base_steps or request.steps
            below = upper_levels(facts, steps, options.shift, options.base_shift)
            stages.insert(0, base_stage(facts, request, below))
        upper = upper_guidance(facts, options, embedded=GUIDANCE)
        return guided_plan(facts, request, options, default_vae_calls(stages, request.image), upper)

    def run(self, engine: Engine, plan: SamplingPlan) -> Generator[torch.Tensor]:
        from uhr.models.samplers.core.passes import base_pass
        from uhr.models.samplers.core.velocities import swin_patchify

        stage, image, options = plan.last, engine.image, plan.options
        if image is None:
            z = base_pass(engine, plan.stages[0])
            yield z
            image = engine.decode(z)
        generator = engine.noise.generator if options.sample else None
        reference = engine.enlarge(image, stage.size, generator=generator)
        noise = engine.draw_noise(stage)
        with engine.network(stage, alone="toolkit.ntk=1") as velocity:
            if options.swin:
                velocity = swin_patchify(velocity, engine, options.ring)
            z = engine.integrate(stage, noise, projected(velocity, reference, stage.steps, options))
        yield z


def projected(velocity: Velocity, reference: torch.Tensor, steps: int, options: IMaxOptions) -> Velocity:
    """Return the velocity with its low frequencies moved towards `reference`, by a weight that falls over the
    steps."""
    from uhr.models.ops.filters import haar_low_pass
    from uhr.models.ops.projection import cosine_weight, project, velocity_towards
    from uhr.models.ops.swin import shifts

    def drawn(z: torch.Tensor, sigma: float, step: int, conditions: Conditions) -> torch.Tensor:
        v = velocity(z, sigma, step, conditions)
        low_pass = shifted_low_pass if options.swin and shifts(step) else haar_low_pass
        towards = velocity_towards(z, reference, sigma)
        return project(v, towards, cosine_weight(step, steps), options.projection, low_pass)

    return drawn


def shifted_low_pass(x: torch.Tensor) -> torch.Tensor:
    """Apply `haar_low_pass` on blocks that begin one position further up and left; blocks on the border only
    count positions inside."""
    import torch.nn.functional as F

    from uhr.models.ops.filters import haar_low_pass
    from uhr.models.ops.swin import crop

    return crop(haar_low_pass(F.pad(x, (1, 1, 1, 1), mode="replicate")))


__getattr__ = pipelines_of(IMax)
