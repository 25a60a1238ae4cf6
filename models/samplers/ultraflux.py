"""UltraFlux: native 4K in one pass, on the latents of an F16 VAE under Resonance positions."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from uhr.models.ops.choices import ShiftPolicy
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.guidance import guided_plan
from uhr.models.samplers.core.options import SamplerOptions
from uhr.models.samplers.core.pipelines.exports import pipelines_of
from uhr.models.samplers.core.plan import SamplingPlan, SamplingRequest, default_vae_calls
from uhr.models.samplers.core.sampler import Sampler
from uhr.models.samplers.core.stages import dense_stage

if TYPE_CHECKING:
    import torch

    from uhr.models.samplers.core.engine import Engine
    from uhr.models.surgery.base import Surgery

GUIDANCE = 4.0
"""Default guidance on a backbone that embeds it, from the official script."""

UNTRAINED = (
    "unadapted: the F8 VAE was made F16 for this call without training. UltraFlux's own VAE and transformer "
    "are published as Owen777/UltraFlux-v1: give that with --model"
)


class UltraFluxOptions(SamplerOptions):
    """Options of ultraflux.

    shift_factor:   factor of the static shift: 3 in the official script, whose time_shift of 4 is unused
    positions:      resonance is the code since 2025-12-17; yarn and plain are for comparison. They act only
                    where an axis is longer than the window
    native_size:    native size of the backbone before UltraFlux. The positions' window is its number of F8
                    tokens: 64 for FLUX.1, which is 2048 px for UltraFlux
    """

    shift_factor: float = Field(default=3.0, gt=0)
    positions: Literal["resonance", "yarn", "plain"] = "resonance"


class UltraFlux(Sampler):
    """UltraFlux's inference, by its official `inf_ultraflux.py`: 4096 x 4096 or any aspect ratio, 50 steps,
    guidance 4 (the pipeline's default there is 7), static shift 3; 50 calls of 16,384 tokens, no base pass.

    The VAE works at factor 16, and sides are multiples of 32 px. An F8 VAE is converted to F16 during a call;
    an F16 one, such as UltraFlux's, is used as it is. Without UltraFlux's training the decoder makes a softer
    image from half the latents per side, and a note in the record says so.

    Published weights: Owen777/UltraFlux-v1 is a whole model (transformer, F16 VAE). Its transformer was
    trained and released under a Resonance whose exponent had the wrong sign; the one of
    Owen777/UltraFlux-v1-1-Transformer came after the correction (17 December 2025, in the official
    `transformer_flux_visionyarn.py`), and is the one to take: load it in v1's place (`--transformer`,
    `load_pipeline(weights=)`).
    """

    Options = UltraFluxOptions
    takes_image = False
    native_times = 2
    published_steps = 50
    vae_factor = 16

    def plan(self, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
        from uhr.models.vae.f16 import F16

        levels = facts.schedule(request.steps, 0, ShiftPolicy.STATIC, options.shift_factor)
        positions = _positions(options.positions, facts.native_side)
        stage = replace(dense_stage(facts, request, request.size, levels), surgeries=positions)
        card = GUIDANCE if facts.guidance == "embedded" else None
        stages = default_vae_calls([stage], image=False)
        return replace(guided_plan(facts, request, options, stages, card=card), vae_surgeries=(F16(),))

    def run(self, engine: Engine, plan: SamplingPlan) -> Generator[torch.Tensor]:
        (stage,) = plan.stages
        engine.record.notes = [] if plan.facts.vae_stride == 2 else [UNTRAINED]
        noise = engine.draw_noise(stage)
        with (
            engine.surgeries(engine.models.transformer, stage.surgeries, record_all=True),
            engine.network(stage) as velocity,
        ):
            z = engine.integrate(stage, noise, velocity)
        yield z


def _positions(name: str, window: int) -> tuple[Surgery, ...]:
    """The surgery of that name; "plain" has none."""
    from uhr.models.surgery.rope import RopeResonance, RopeYarn

    kinds = {"resonance": RopeResonance, "yarn": RopeYarn}
    return (kinds[name](window=window),) if name in kinds else ()


__getattr__ = pipelines_of(UltraFlux)
