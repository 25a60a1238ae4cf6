"""UltraGen: a low-resolution image guides a large one that is generated in local windows of attention."""

from __future__ import annotations

import functools
from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.guidance import guided_plan, upper_guidance
from uhr.models.samplers.core.pipelines.exports import pipelines_of
from uhr.models.samplers.core.plan import SamplingPlan, SamplingRequest, SamplingStage, with_vae_calls
from uhr.models.samplers.core.sampler import Sampler
from uhr.models.samplers.core.size_rule import SizeRule
from uhr.models.samplers.ultragen_plan import (
    UltraGenOptions,
    code_weight,
    filled,
    layout_of,
    stages_of,
    vae_calls_of,
    window_of,
)

if TYPE_CHECKING:
    import torch

    from uhr.models.attention.call import Windows
    from uhr.models.families.conditions import Condition
    from uhr.models.samplers.core.conditioning import Conditions
    from uhr.models.samplers.core.engine import Call, Engine, Velocity

GUIDANCE, CFG = 4.5, 8.0
"""Guidance of the stages above the base: embedded, and the scale of two passes (from the configurations for
FLUX.1 and klein-base)."""

UNADAPTED = (
    "unadapted: no adapter on this model acts on guide tokens, which it was not trained to read. Fetch "
    "UltraGen's LoRA for this backbone (github.com/PeterYYZhang/Scale-DiT links it) and give it with "
    "--adapter, or train one: a LoRA of rank 16 on to_q, to_k, to_v, masked to guide tokens "
    "(surgery token-masked-lora)"
)

POSITIONS_ALONE = "ntk=1 and base_ntk=1"


class UltraGen(Sampler):
    """UltraGen (Scale-DiT, 2510.16325, section 3): a base image at the native size, enlarged, noised to
    the level after 10 of 28 steps (0.84375 under static shift 3), and denoised by the last 18 with
    hierarchical local attention. Every window sees itself, its neighbours, the text, and the part of the
    guide that covers the same area: the image below at a quarter of the side, clean, at timestep 0.

    Calls on FLUX.1-dev at 4K: 28 + 18. At 8K the guide has 2048 px and is generated first by the same method
    (28 + 18 + 18). Sides are multiples of the window, 256 px on FLUX.

    If the image below has the guide's size, its latents are the guide; otherwise it is resized in pixels and
    encoded. Ids are float32; the code's collide above 4096 px. `attention/window_rules.py` has the possible
    masks; none is dilated to a kernel's tiles as the code's is.
    """

    Options = UltraGenOptions
    guide_tokens = True
    native_times = 4
    published_steps = 28

    def sizes(self, facts: ModelFacts, options: Any) -> SizeRule:
        unit = facts.multiple * window_of(options, facts.native_side)
        return SizeRule.multiples(unit, above=facts.native)

    def plan(self, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
        upper = upper_guidance(facts, options, embedded=GUIDANCE, cfg=CFG)
        options = filled(facts, request, options)
        stages = stages_of(facts, request, options)
        coded = with_vae_calls(stages, vae_calls_of(request, options, stages))
        return guided_plan(facts, request, options, coded, upper)

    def run(self, engine: Engine, plan: SamplingPlan) -> Generator[torch.Tensor]:
        from uhr.models.adapters.guide_only import guide_only
        from uhr.models.samplers.core.passes import base_pass

        record, stages, z = engine.record, plan.stages, None
        with guide_only(engine.models.transformer, plan.options.guide_adapters) as kept:
            record.settings = plan.options.model_copy(update={"guide_adapters": tuple(kept)})
            record.notes = [] if kept else [UNADAPTED]
            if engine.image is None:
                z = base_pass(engine, stages[0], alone=POSITIONS_ALONE)
                yield z
                stages = stages[1:]
            for stage in stages:
                z = _WindowedStage(engine, stage, plan.options, z).run()
                yield z


class _WindowedStage:
    """One windowed stage; `below` is z of the stage below, None for the input image."""

    def __init__(
        self, engine: Engine, stage: SamplingStage, options: UltraGenOptions, below: torch.Tensor | None
    ) -> None:
        self.engine, self.stage, self.options, self.below = engine, stage, options, below

    def run(self) -> torch.Tensor:
        """Run the stage and return its z."""
        from uhr.models.ops import flow

        engine, stage, options = self.engine, self.stage, self.options
        guide = self._reduced() if options.guide else None
        start = data = engine.draw_noise(stage)
        if stage.sigmas[0] < 1 or options.projection != "off":
            data = self._enlarged(guide)
            start = flow.interpolate(data, start, stage.sigmas[0])
        call = windowed(engine, stage, options, guide)
        with engine.network(stage, call, alone=POSITIONS_ALONE) as velocity:
            if options.projection != "off":
                velocity = projected(velocity, data, stage.steps, options)
            return engine.integrate(stage, start, velocity)

    @functools.cached_property
    def _pixels(self) -> torch.Tensor:
        """The image below, [B, 3, h, w]."""
        found = self.engine.image if self.below is None else self.engine.decode(self.below)
        assert found is not None
        return found

    def _reduced(self) -> torch.Tensor:
        """z of the image below at 1/ratio of the stage's size; its own latents if it has that size."""
        from uhr.models.ops.filters import bicubic

        size = self.stage.height // self.options.ratio, self.stage.width // self.options.ratio
        if self.below is not None and tuple(self.below.shape[-2:]) == self.engine.latent_size(size):
            return self.below
        return self.engine.encode(bicubic(self._pixels, *size))

    def _enlarged(self, guide: torch.Tensor | None) -> torch.Tensor:
        """z of the image below, at the stage's size. For an input image it is made from the guide's
        latents."""
        from uhr.models.ops.filters import bicubic

        if self.options.warm_start == "pixels":
            return self.engine.enlarge(self._pixels, self.stage.size, self.options.sharpening)
        latents = guide if self.below is None else self.below
        if latents is None:
            latents = self._reduced()
        return bicubic(latents, *self.engine.latent_size(self.stage.size))


def windowed(
    engine: Engine, stage: SamplingStage, options: UltraGenOptions, guide: torch.Tensor | None
) -> Call:
    """Return the engine's call with windowed attention. Each branch of guidance has its own `Windows`, since
    a cached guide belongs to one text. `guide` is z of the guide."""
    from uhr.models.attention.call import Windows
    from uhr.models.attention.flex import BlockMasks
    from uhr.models.attention.guide import Guide
    from uhr.models.ops import latents as latent

    masks = engine.models.kept.setdefault("ultragen's block masks", BlockMasks())
    layout = layout_of(engine.facts, stage.size, options)
    tokens = None if guide is None else latent.pack(guide)

    @functools.cache
    def windows(branch: str) -> Windows:
        of_branch = None if tokens is None else Guide(tokens, cached=options.cached)
        return Windows(layout, options.rules, of_branch, options.backend, masks)

    def call(tokens: torch.Tensor, sigma: float, condition: Condition, branch: str) -> torch.Tensor:
        return engine.call(tokens, sigma, replace(condition, attention=windows(branch)), branch)

    return call


def projected(velocity: Velocity, data: torch.Tensor, steps: int, options: UltraGenOptions) -> Velocity:
    """Return the velocity with its low frequencies moved towards `data`."""
    from uhr.models.ops.projection import cosine_weight, project, velocity_towards

    skipped = options.skip or 0

    def drawn(z: torch.Tensor, sigma: float, step: int, conditions: Conditions) -> torch.Tensor:
        v = velocity(z, sigma, step, conditions)
        if options.projection == "code":
            weight = code_weight(step, steps, steps + skipped)
        else:
            weight = cosine_weight(step, steps)
        return project(v, velocity_towards(z, data, sigma), weight)

    return drawn


__getattr__ = pipelines_of(UltraGen)
