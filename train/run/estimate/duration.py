"""How long the steps of a run take on a GPU, counted from shapes and the GPU's data sheet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uhr.models.estimate.devices import Device
from uhr.models.estimate.operations import BackboneCost, Operations
from uhr.train.encode.stored.tensors import BYTES
from uhr.train.recipes.core.base import Recipe
from uhr.train.run.estimate.memory import BaseSizes

if TYPE_CHECKING:
    from uhr.models.attention.layout import WindowLayout
    from uhr.train.objectives.base import Objective

ATTENTION_BACKWARD = 2.5
"""Operations of attention's backward pass, in those of its forward pass (FlashAttention-2, 2307.08691: it
computes the scores again)."""


@dataclass(frozen=True)
class TokenCounts:
    """Numbers of tokens of one call, and its windows if it has some."""

    image: int
    text: int
    guide: int
    layout: WindowLayout | None = None

    @property
    def tokens(self) -> int:
        return self.image + self.text + self.guide


def token_counts(recipe: Recipe, height: int, width: int, text: int) -> TokenCounts:
    """The tokens of an image of height x width tokens.

    recipe: its windows have their side (`GuideWindows.for_model`).
    """
    if recipe.windows is None:
        return TokenCounts(height * width, text, 0)
    from uhr.models.attention.layout import WindowLayout

    assert recipe.windows.window is not None
    layout = WindowLayout(height, width, recipe.windows.window, recipe.windows.ratio)
    return TokenCounts(height * width, text, layout.guide_tokens, layout)


def forward(recipe: Recipe, backbone: BackboneCost, tokens: TokenCounts) -> Operations:
    """The operations of one forward pass over one sample."""
    if recipe.windows is None or tokens.layout is None:
        return backbone.call(tokens.image, tokens.text)
    from uhr.models.attention.counts import pairs

    counted = pairs(tokens.layout, recipe.windows.rules, tokens.text)
    whole = backbone.call(tokens.image, tokens.text, counted.text + counted.image)
    return whole.plus(backbone.guide(tokens.guide, counted.guide))


def sample_operations(
    recipe: Recipe, backbone: BackboneCost, tokens: TokenCounts, objective: Objective
) -> Operations:
    """The operations of all passes over one sample.

    Forward and backward pass of the trained model, the blocks once more with gradient checkpointing, and a
    forward pass of the teacher if there is one. The backward pass of a weight that is trained takes twice the
    forward pass, and of a frozen one once. Adapters are not counted: they are a hundredth.
    """
    once = forward(recipe, backbone, tokens)
    again = 1 if recipe.runtime.gradient_checkpointing else 0
    linear = once.linear * (2 + again + int(recipe.trainable.divisible))
    attention = once.attention * (1 + again + ATTENTION_BACKWARD)
    passes, teacher = objective.passes, int(objective.uses_teacher)
    return Operations(
        round(linear * passes) + teacher * once.linear, round(attention * passes) + teacher * once.attention
    )


def step_seconds(
    recipe: Recipe,
    objective: Objective,
    work: Operations,
    gpu: Device,
    samples: int,
    base: BaseSizes,
    state: int,
) -> float:
    """The seconds of a step in which a process computes `samples` samples of `work` operations each.

    Quantised weights are read, and written in the run's precision, by every pass over the blocks; streamed
    ones are copied once for each forward pass, and once for its backward pass, while others compute.

    state: bytes of values, gradients and optimiser state, each of which is read and written once. Messages
    between processes are taken to overlap with the computation.
    """
    runtime = recipe.runtime
    micro = -(-samples // min(recipe.batch.micro, samples))
    teacher, again = int(objective.uses_teacher), int(runtime.gradient_checkpointing)
    seconds = gpu.seconds(work.times(samples), runtime.precision)
    if runtime.quantize is not None:
        passes = micro * (objective.passes * (2 + again) + teacher)
        seconds += passes * gpu.reading(base.weights + BYTES[runtime.precision] * base.parameters)
    if runtime.offload is not None:
        copies = micro * (2 * objective.passes + teacher)
        seconds = max(seconds, gpu.moving(copies * base.streamed))
    return seconds + 2 * gpu.reading(state)
