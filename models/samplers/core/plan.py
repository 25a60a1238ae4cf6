"""The sampling plan: everything about a call that is known before weights are loaded.

The same plan is checked, shown, estimated and run. It has the stages with their noise levels and guidance,
and the calls of the backbone and of the VAE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from uhr.models.ops.sizes import Size

if TYPE_CHECKING:
    from uhr.models.attention.layout import WindowLayout
    from uhr.models.attention.window_rules import WindowRules
    from uhr.models.ops.patches.grid import Box
    from uhr.models.samplers.core.facts import ModelFacts
    from uhr.models.surgery.base import Surgery

GuideUse = Literal["none", "kept", "in every call"]
"""Whether windows have a guide, and whether its keys and values are kept after the first call."""


@dataclass(frozen=True)
class SamplingRequest:
    """One call of a sampler. `height` and `width` are the size of the generated image in px.

    `guidance` None means the number of the sampler or of the model card; `image` is whether an input image
    replaces the base pass, and `negative` whether there is a negative prompt.
    """

    height: int
    width: int
    steps: int
    image: bool = False
    guidance: float | None = None
    negative: bool = False
    text_length: int | None = None
    """Text tokens of a prompt; None is what the backbone was trained with."""

    cut: Size | None = None
    """The size that the result is cut to, if that is not a whole number of tokens."""

    @property
    def size(self) -> Size:
        return self.height, self.width

    @property
    def target(self) -> Size:
        """The size of the result in px."""
        return self.cut or self.size

    def at(self, size: Size) -> SamplingRequest:
        """Return the same request at another size."""
        return replace(self, height=size[0], width=size[1])


@dataclass(frozen=True)
class WindowedAttention:
    """Windowed attention, with or without a guide."""

    layout: WindowLayout
    rules: WindowRules
    guide: GuideUse


@dataclass(frozen=True)
class BackboneCalls:
    """`count` calls of the backbone in one branch of guidance, each over `image` and `text` tokens.

    `windows` None is dense attention; `together` of the calls share a batch.
    """

    count: int
    image: int
    text: int
    windows: WindowedAttention | None = None
    together: int = 1

    @property
    def guide(self) -> int:
        """Guide tokens."""
        windows = self.windows
        return 0 if windows is None or windows.guide == "none" else windows.layout.guide_tokens

    @property
    def pairs(self) -> int:
        """Query-key pairs of one layer in one call, without those among the guide's own tokens."""
        if self.windows is None:
            return (self.image + self.text) ** 2
        from uhr.models.attention.counts import pairs

        counted = pairs(self.windows.layout, self.windows.rules, self.text, self.guide > 0)
        return counted.text + counted.image


@dataclass(frozen=True)
class VaeCall:
    """`count` calls of the VAE with images of height x width px."""

    part: Literal["encode", "decode"]
    height: int
    width: int
    count: int = 1


@dataclass(frozen=True)
class SamplingStage:
    """Euler steps at one size in px: `sigmas` are steps + 1 falling noise levels.

    A sampler sets size, levels, calls, surgeries and attention; guidance and branches are filled in by
    `guidance.guided_plan`, the VAE calls by the sampler or `default_vae_calls`.
    """

    name: str
    height: int
    width: int
    sigmas: tuple[float, ...]
    calls: tuple[BackboneCalls, ...] = ()
    """Calls of the backbone in one branch of guidance."""

    vae_calls: tuple[VaeCall, ...] = ()
    labels: tuple[float, ...] = ()
    """Noise levels [steps] shown to the network, if they differ from `sigmas`."""

    boxes: tuple[Box, ...] = ()
    """Windows or patches, in px, from which the image is assembled; empty if it is generated as a whole."""

    surgeries: tuple[Surgery, ...] = ()
    """Surgeries on the transformer during the stage."""

    attention: Any = None
    """`Condition.attention` of every call of the stage."""

    text_tile: int | None = None
    """The text is repeated once for each whole tile of this side in tokens; None does not repeat it."""

    guidance: float | None = None
    """The guidance that the backbone embeds, or the scale of its two passes; None if it takes none."""

    branches: int = 1
    """Calls of the backbone for one guided velocity."""

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def size(self) -> Size:
        return self.height, self.width

    @property
    def rounds(self) -> int:
        """How many times the steps are run, each time for another part of the image."""
        return 1

    @property
    def calls_per_step(self) -> int:
        """Calls of the backbone in each step and branch."""
        return sum(each.count for each in self.calls) // self.steps

    @property
    def total_calls(self) -> int:
        """Calls of the backbone in all steps and branches."""
        return self.branches * sum(each.count for each in self.calls)

    def label(self, step: int, sigma: float) -> float:
        """Return the noise level shown to the network at a step whose true level is `sigma`."""
        return self.labels[step] if self.labels else sigma

    def describe(self) -> dict[str, Any]:
        """Return JSON for the image's record."""
        return {
            "name": self.name,
            "height": self.height,
            "width": self.width,
            "sigmas": list(self.sigmas),
            "calls_per_step": self.calls_per_step,
            "guidance": self.guidance,
        }


@dataclass(frozen=True)
class SamplingPlan:
    """One resolved call: `options` with every value filled in, and `stages` in order, the last of the
    generated size. `guidance` is the call's own number, or the model card's if a stage needs it."""

    facts: ModelFacts
    request: SamplingRequest
    options: Any
    stages: tuple[SamplingStage, ...]
    guidance: float | None = None
    vae_surgeries: tuple[Surgery, ...] = ()
    """Surgeries on the VAE during the call. Exact tiling is not among them: its memory is known only at the
    call."""

    @property
    def last(self) -> SamplingStage:
        return self.stages[-1]

    @property
    def has_base(self) -> bool:
        """Whether the first stage is a base pass of about the native size."""
        return self.stages[0].name == "base"

    @property
    def model_calls(self) -> int:
        """Calls of the backbone in all stages and branches."""
        return sum(stage.total_calls for stage in self.stages)

    @property
    def steps(self) -> int:
        """Steps of all stages, which is how often the step callback is called."""
        return sum(stage.steps * stage.rounds for stage in self.stages)


def default_vae_calls(stages: Sequence[SamplingStage], image: bool) -> tuple[SamplingStage, ...]:
    """Return the stages with the VAE passes of most samplers: each stage starts from the image of the
    previous one (the first from the input image, if `image`), enlarged and encoded, and its latents are
    decoded."""
    found = []
    for index, stage in enumerate(stages):
        encoded = (VaeCall("encode", *stage.size),) if index or image else ()
        found.append(replace(stage, vae_calls=(*encoded, VaeCall("decode", *stage.size))))
    return tuple(found)


def with_vae_calls(
    stages: Sequence[SamplingStage], vae_calls: Sequence[Sequence[VaeCall]]
) -> tuple[SamplingStage, ...]:
    """Return the stages, each with its own calls of the VAE."""
    return tuple(replace(stage, vae_calls=tuple(each)) for stage, each in zip(stages, vae_calls, strict=True))
