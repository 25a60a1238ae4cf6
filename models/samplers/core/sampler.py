"""The sampler: a small object that makes a plan of a call and runs it (docs/extending-samplers.md).

Options                        a class of `SamplerOptions`: what `--set` sets, and keyword arguments of a call
sizes(facts, options)          which sizes it can generate
plan(facts, request, options)  every stage, made once, without weights
run(engine, plan)              the stages' latents in order, or strips of finished pixels
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, ClassVar

from uhr.base.errors import UserError
from uhr.models.ops.sizes import Size
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.options import SamplerOptions
from uhr.models.samplers.core.plan import SamplingPlan, SamplingRequest
from uhr.models.samplers.core.size_rule import SizeRule
from uhr.models.specs.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from uhr.models.samplers.core.engine import Engine, Strip

FEW_STEPS = 12
"""A model whose card has fewer steps was distilled for them: a sampler's own number is not for it."""


class Sampler(ABC):
    """One method of sampling. It holds no state and no models; sizes are (height, width) in px."""

    Options: ClassVar[type[SamplerOptions]] = SamplerOptions

    takes_image: ClassVar[bool] = True
    """Whether an image may be given in place of the base pass."""

    fits_images: ClassVar[bool] = False
    """Whether an image of any size comes back at exactly the requested size; for others `fitting` pads it."""

    guide_tokens: ClassVar[bool] = False
    """Whether its calls have tokens of a guide, to which adapters can be restricted."""

    runs_on_when_interrupted: ClassVar[bool] = False
    """Whether `run` is asked for the rest after an interruption, which it then gives without the backbone."""

    vae_factor: ClassVar[int | None] = None
    """Pixels per latent and side of the VAE during a call; None is that of the loaded one."""

    published_steps: ClassVar[int | None] = None
    """Of a call that names none; None is the number of the model's card."""

    native_times: ClassVar[int] = 2
    """Side of a call that names no size, over the native one; of a given image, the usual scale."""

    image_scale: ClassVar[float | None] = None
    """The usual scale of a given image, where it is not `native_times`."""

    @abstractmethod
    def plan(self, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
        """The stages in order, the last of the requested size; UserError for what cannot be done."""

    @abstractmethod
    def run(self, engine: Engine, plan: SamplingPlan) -> Generator[torch.Tensor | Strip]:
        """Yield z [B, C, H, W] of each stage in turn, or strips of pixels in the last one's place."""

    def sizes(self, facts: ModelFacts, options: Any) -> SizeRule:
        """Which sizes it can generate."""
        return SizeRule.multiples(facts.multiple)

    def default_steps(self, facts: ModelFacts) -> int:
        """Steps of a call that names none: the published number, or the model's own where that is small."""
        if facts.steps is not None and facts.steps < FEW_STEPS:
            return facts.steps
        steps = self.published_steps or facts.steps
        if steps is None:
            raise UserError("no spec describes this backbone", "give num_inference_steps")
        return steps

    def command_steps(self, facts: ModelFacts, options: Any, steps: int | None) -> int:
        """Steps of a command that names `steps`, or none."""
        return steps or self.default_steps(facts)

    def default_size(self, facts: ModelFacts) -> Size:
        """Of a call that names none."""
        return self.native_times * facts.native, self.native_times * facts.native

    def default_scale(self) -> float:
        """Sides of the result over those of a given image, where a call names neither scale nor size."""
        return self.image_scale or self.native_times

    def facts_of(self, spec: ModelSpec, options: Any) -> ModelFacts:
        """Facts of a model that is not loaded, under this sampler's own changes of it."""
        return ModelFacts.of_spec(spec, self.vae_factor).with_native(options.native_size)


def make_plan(sampler: Sampler, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
    """The sampler's plan of a call.

    Raises:
        UserError: for an image that the sampler does not take, a size that it cannot generate (with the
            nearest sizes), and whatever else its plan refuses.
    """
    if request.image and not sampler.takes_image:
        what = "this sampler has no base pass that an image could take the place of"
        raise UserError(what, "leave the image out, or take sdedit or patch-cascade")

    def possible(size: Size) -> bool:
        try:
            sampler.plan(facts, request.at(size), options)
        except UserError:
            return False
        return True

    sampler.sizes(facts, options).check(request.size, possible)
    return sampler.plan(facts, request, options)


def plan_of_spec(
    sampler: Sampler,
    spec: ModelSpec,
    options: Any,
    size: Size | None = None,
    steps: int | None = None,
    *,
    image: bool = False,
    guidance: float | None = None,
    negative: bool = False,
) -> SamplingPlan:
    """The plan of a model that is not loaded; `size` and `steps` None are the sampler's own. See `make_plan`
    and `SamplingRequest`."""
    facts = sampler.facts_of(spec, options)
    steps = sampler.default_steps(facts) if steps is None else steps
    request = SamplingRequest(*(size or sampler.default_size(facts)), steps, image, guidance, negative)
    return make_plan(sampler, facts, request, options)


FAMILIES = ("flux1", "flux2")
"""Every sampler runs on these families of backbones."""

_PREFIXES = {"flux1": "", "flux2": "Flux2"}


def pipeline_name(sampler: type[Sampler], family: str) -> str:
    """`EulerPipeline` and `Flux2EulerPipeline` for a sampler `Euler`."""
    return f"{_PREFIXES[family]}{sampler.__name__}Pipeline"
