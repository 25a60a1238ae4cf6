"""The facts of a model that a sampler's plan needs, from its spec or from a loaded pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError
from uhr.models.loading.scheduler_config import SchedulerConfig
from uhr.models.ops.choices import ShiftPolicy
from uhr.models.ops.sizes import Size, base_size
from uhr.models.specs.spec import GuidanceKind, ModelSpec

if TYPE_CHECKING:
    from uhr.models.families.base import Backbone


USUAL_FACTOR = 8
"""Factor of the VAE that `native_size` is stated for."""


@dataclass(frozen=True)
class ModelFacts:
    """Geometry, guidance and schedule of one model, after the surgeries of a sampler.

    `native_size` is the side in px of the training square with a VAE of factor 8; `steps` and
    `guidance_scale` are those of the model's card. All three are None if no spec describes the model.
    `guidance_scale` is also None if the model takes no guidance.
    """

    family: Backbone
    guidance: GuidanceKind
    vae_factor: int
    """Pixels per latent and side."""

    patch: int
    """Latents per token and side."""

    text_length: int
    """Text tokens that the backbone was trained with."""

    native_size: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: SchedulerConfig = field(default_factory=lambda: SchedulerConfig({}), compare=False)
    """The checkpoint's own spacing and shift of noise levels."""

    vae_stride: int = 1
    """`stride` of the VAE's configuration: 2 if it was trained at factor 16."""

    adapters: tuple[str, ...] = ()
    """Names of the adapters that act on the backbone."""

    @classmethod
    def of_spec(cls, spec: ModelSpec, vae_factor: int | None = None) -> ModelFacts:
        """Return the facts of a model that is not loaded; `vae_factor` is set if the sampler changes it."""
        from uhr.models.families.registry import FAMILIES

        return cls(
            family=FAMILIES[spec.family],
            guidance=spec.guidance,
            vae_factor=vae_factor or spec.vae_factor,
            patch=spec.patch,
            text_length=max(spec.text_lengths.values()),
            native_size=spec.native_size * USUAL_FACTOR // spec.vae_factor,
            steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            scheduler=_scheduler(spec),
        )

    @classmethod
    def of_pipeline(cls, pipeline: Any, vae_factor: int | None = None) -> ModelFacts:
        """Return the facts of a loaded `SamplerPipeline`; `vae_factor` as in `of_spec`."""
        from uhr.models.adapters import peft_layers
        from uhr.models.vae.f16 import vae_factor as factor_of

        spec = pipeline.spec
        if vae_factor is None:
            vae_factor = 8 if pipeline.vae is None else factor_of(pipeline.vae)
        return cls(
            family=pipeline.family,
            guidance=pipeline.family.guidance_kind(pipeline.transformer, pipeline.config),
            vae_factor=vae_factor,
            patch=2,
            text_length=pipeline.family.text_length(pipeline.transformer),
            native_size=None if spec is None else spec.native_size,
            steps=None if spec is None else spec.steps,
            guidance_scale=None if spec is None else spec.guidance_scale,
            scheduler=SchedulerConfig.of_scheduler(pipeline.scheduler),
            vae_stride=1 if pipeline.vae is None else pipeline.vae.config.get("stride", 1),
            adapters=tuple(peft_layers.active(pipeline.transformer)),
        )

    def with_native(self, native_size: int | None) -> ModelFacts:
        """Return the same facts with another native size; None changes nothing."""
        return replace(self, native_size=native_size or self.native_size)

    @property
    def described(self) -> bool:
        """Whether a spec describes the model."""
        return self.steps is not None

    @property
    def multiple(self) -> int:
        """Side of an image token in px; heights and widths are multiples of it."""
        return self.vae_factor * self.patch

    @property
    def native(self) -> int:
        """Side in px of the training square with this model's VAE: twice `native_size` with an F16 VAE, whose
        tokens are twice as wide. Raises UserError if neither a spec nor the user gives it."""
        if self.native_size is None:
            fix = "give native_size, the side in px of its training square"
            raise UserError("no spec describes this backbone", fix)
        return self.native_size * self.vae_factor // USUAL_FACTOR

    @property
    def native_side(self) -> int:
        """Side of the training square in tokens, which does not depend on the VAE."""
        return self.native // self.multiple

    def grid(self, size: Size) -> tuple[int, int]:
        """Return the rows and columns of image tokens of a size in px."""
        return size[0] // self.multiple, size[1] // self.multiple

    def tokens(self, size: Size) -> int:
        """Return the number of image tokens of a size in px."""
        rows, columns = self.grid(size)
        return rows * columns

    def base_size(self, size: Size) -> Size:
        """Return the size of a base pass: about the native area, in the aspect ratio of `size`."""
        return base_size(*size, self.native, self.multiple)

    def schedule(
        self, steps: int, tokens: int, shift: ShiftPolicy | str | None = None, factor: float = 3.0
    ) -> list[float]:
        """Return `steps` + 1 noise levels from 1 to 0, shifted for `tokens` image tokens.

        Args:
            shift: shift of the linear grid; None is the checkpoint's own schedule, spacing included.
            factor: the factor, if `shift` is static.

        Raises:
            schedules.ShiftOutOfRange: for a dynamic shift above the tokens that it was calibrated for.
        """
        return self.scheduler.schedule(self.family, steps, tokens, shift, factor)


def _scheduler(spec: ModelSpec) -> SchedulerConfig:
    """The configuration of the checkpoint's scheduler, or the one that the backbone was published with."""
    if not spec.scheduler_config:
        return SchedulerConfig.usual(spec.shift)
    return SchedulerConfig.of(spec.scheduler_config, f"the scheduler of this {spec.name}")
