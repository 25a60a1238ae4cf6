"""The base class of samplers: an object that plans a call and runs the plan (docs/extending-samplers.md).

Options                        a class of `SamplerOptions`, set by `--set` or as keyword arguments of a call
sizes(facts, options)          which sizes it can generate
plan(facts, request, options)  every stage, computed once, without weights
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
from uhr.models.specs.registry import FAMILY_SPECS
from uhr.models.specs.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from uhr.models.samplers.core.engine import Engine, Strip

FEW_STEPS = 12
"""A model whose card has fewer steps than this was distilled. The sampler's published number of steps is not
used for it."""


class Sampler(ABC):
    """One method of sampling. It holds no state and no models; sizes are (height, width) in px."""

    Options: ClassVar[type[SamplerOptions]] = SamplerOptions

    takes_image: ClassVar[bool] = True
    """Whether an image may be given in place of the base pass."""

    fits_images: ClassVar[bool] = False
    """Whether an input image of any size gives a result of exactly the requested size; otherwise
    `ops/fitting.py` pads it."""

    guide_tokens: ClassVar[bool] = False
    """Whether its calls have guide tokens, to which adapters can be restricted."""

    runs_on_when_interrupted: ClassVar[bool] = False
    """Whether `run` continues after an interruption, to finish without the backbone."""

    vae_factor: ClassVar[int | None] = None
    """Pixels per latent and side of the VAE during a call; None keeps the loaded VAE's."""

    published_steps: ClassVar[int | None] = None
    """Default number of steps; None takes the number of the model's card."""

    native_times: ClassVar[int] = 2
    """Default ratio of the side to the native side; also the default scale of an input image."""

    image_scale: ClassVar[float | None] = None
    """Default scale of an input image, if it is not `native_times`."""

    @abstractmethod
    def plan(self, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
        """Return the plan: stages in order, the last of the requested size. Raises UserError for a call that
        cannot be generated."""

    @abstractmethod
    def run(self, engine: Engine, plan: SamplingPlan) -> Generator[torch.Tensor | Strip]:
        """Yield z [B, C, H, W] of each stage in turn; the last stage may yield strips of pixels instead."""

    def sizes(self, facts: ModelFacts, options: Any) -> SizeRule:
        """Return the rule for sizes that it can generate."""
        return SizeRule.multiples(facts.multiple)

    def default_steps(self, facts: ModelFacts) -> int:
        """Return the default number of steps: the published one, or the model's own if that is below
        `FEW_STEPS`. Raises UserError if neither is known."""
        if facts.steps is not None and facts.steps < FEW_STEPS:
            return facts.steps
        steps = self.published_steps or facts.steps
        if steps is None:
            raise UserError("no spec describes this backbone", "give num_inference_steps")
        return steps

    def command_steps(self, facts: ModelFacts, options: Any, steps: int | None) -> int:
        """Return the number of steps of a command; `steps` None is the default."""
        return steps or self.default_steps(facts)

    def default_size(self, facts: ModelFacts) -> Size:
        """Return the default size (height, width) in px."""
        return self.native_times * facts.native, self.native_times * facts.native

    def default_scale(self) -> float:
        """Return the default ratio of the side of the result to the side of an input image."""
        return self.image_scale or self.native_times

    def facts_of(self, spec: ModelSpec, options: Any) -> ModelFacts:
        """Return the facts of a model that is not loaded, including this sampler's changes to it."""
        return ModelFacts.of_spec(spec, self.vae_factor).with_native(options.native_size)


def make_plan(sampler: Sampler, facts: ModelFacts, request: SamplingRequest, options: Any) -> SamplingPlan:
    """Return the sampler's plan of a call.

    Raises:
        UserError: if an image is given and the sampler takes none, if the text has no token, if the sampler
            cannot generate the size (the error names the nearest sizes), or if its plan rejects the call for
            another reason.
    """
    if request.text_length is not None and request.text_length < 1:
        what = f"max_sequence_length {request.text_length} is invalid"
        raise UserError(what, "give at least 1, or None for the length that the backbone was trained with")
    if request.image and not sampler.takes_image:
        what = "this sampler has no base pass that an image could replace"
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
    """Return the plan for a model that is not loaded; `size` and `steps` None are the sampler's defaults. See
    `make_plan` and `SamplingRequest`."""
    facts = sampler.facts_of(spec, options)
    steps = sampler.default_steps(facts) if steps is None else steps
    request = SamplingRequest(*(size or sampler.default_size(facts)), steps, image, guidance, negative)
    return make_plan(sampler, facts, request, options)


def pipeline_name(sampler: type[Sampler], family: str) -> str:
    """Return the name of a sampler's pipeline: `EulerPipeline` or `Flux2EulerPipeline` for `Euler`."""
    return f"{FAMILY_SPECS[family].pipeline_prefix}{sampler.__name__}Pipeline"
