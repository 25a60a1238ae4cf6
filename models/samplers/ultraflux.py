"""UltraFlux: native 4K in one pass, on the latents of an F16 VAE under Resonance positions."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch

from uhr.models import surgery
from uhr.models.pipelines import StepEnd
from uhr.models.rope_surgeries import RopeResonance, RopeYarn
from uhr.models.samplers.families import OnFlux1, OnFlux2
from uhr.models.samplers.options import UltraFluxOptions
from uhr.models.samplers.passes import Job
from uhr.models.samplers.staged import Staged
from uhr.models.spec import ModelSpec, ShiftPolicy
from uhr.models.stages import Ask, Stage, sized
from uhr.models.surgery import Surgery
from uhr.models.vae.f16 import F16, vae_factor

UNTRAINED = (
    "unadapted: the F8 VAE was made F16 for this call without training. UltraFlux's own VAE and transformer "
    "are published as Owen777/UltraFlux-v1: give that with --model"
)


class UltraFlux(Staged):
    """UltraFlux's inference, by its official `inf_ultraflux.py`: 4096 x 4096 or any aspect ratio, 50 steps,
    guidance 4 (the pipeline's default there is 7), static shift 3; 50 calls of 16,384 tokens, no base pass.

    The VAE works at factor 16, and sides are multiples of 32 px. An F8 VAE is made F16 for the length of a
    call, an F16 one, UltraFlux's say, is taken as it is. Without UltraFlux's training
    the decoder makes a softer picture of half the latents a side: see `notes`.

    Published weights: Owen777/UltraFlux-v1 is a whole model (transformer, F16 VAE). Its transformer was
    trained and released under a Resonance whose exponent had the wrong sign; the one of
    Owen777/UltraFlux-v1-1-Transformer came after the correction (17 December 2025, in the official
    `transformer_flux_visionyarn.py`), and is the one to take: load it in v1's place (`--transformer`,
    `load_pipeline(weights=)`).
    """

    Options = UltraFluxOptions
    takes_picture = False
    native_times = 4
    published_steps = 50

    @property
    def vae_scale_factor(self) -> int:
        """16, whatever diffusers' constructor makes of the VAE's levels and writes here."""
        return 16

    @vae_scale_factor.setter
    def vae_scale_factor(self, value: int) -> None:
        pass

    @classmethod
    def default_guidance(cls, spec: ModelSpec) -> float | None:
        """4 where the backbone embeds guidance, its card's elsewhere."""
        return 4.0 if spec.guidance == "embedded" else spec.guidance_scale

    @classmethod
    def multiple(cls, spec: ModelSpec) -> int:
        return 16 * spec.patch

    @classmethod
    def plan(cls, ask: Ask, options: Any) -> list[Stage]:
        return [sized(*ask.size, ask.schedule(ask.steps, 0, ShiftPolicy.STATIC, options.shift_factor))]

    def run(self, job: Job) -> Generator[torch.Tensor]:
        stage = job.plan[-1]
        noise = self.fresh(job, stage)
        # an F16 token is as wide as two of F8
        with self._on(self.transformer, _positions(job.options.positions, 2 * job.native.side)):
            yield self.follow(job, stage, noise)

    def begin(self, step_end: StepEnd, attention: dict[str, Any] | None) -> None:
        super().begin(step_end, attention)
        self.notes = () if self.vae.config.get("stride", 1) == 2 else (UNTRAINED,)

    @contextlib.contextmanager
    def exact_vae(self) -> Generator[None]:
        """F16, and exact tiling as ever."""
        # by what is on it, not by what its configuration says: diffusers loads a published F16 VAE as F8
        with self._on(self.vae, F16()), super().exact_vae():
            assert vae_factor(self.vae) == self.vae_scale_factor, vae_factor(self.vae)
            yield

    @contextlib.contextmanager
    def _on(self, model: Any, wanted: Surgery | None) -> Generator[None]:
        """A surgery for the length of a block, unless it is on the model already."""
        missing = [] if wanted is None or wanted in surgery.applied(model) else [wanted]
        with surgery.temporarily(model, *missing):
            self._note(surgery.applied(model))
            yield


def _positions(name: str, window: int) -> Surgery | None:
    """The surgery of that name; None leaves the positions alone."""
    kinds = {"resonance": RopeResonance, "yarn": RopeYarn}
    return kinds[name](window=window) if name in kinds else None


class UltraFluxPipeline(UltraFlux, OnFlux1):
    """UltraFlux on FLUX.1."""


class Flux2UltraFluxPipeline(UltraFlux, OnFlux2):
    """UltraFlux's form on FLUX.2 [klein], for which no weights of it exist."""
