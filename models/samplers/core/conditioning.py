"""The conditioning of a call: the encoded prompt and negative prompt, and the guidance of each stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.families.conditions import Condition, Prompt
from uhr.models.families.text import Embedded, TokenCount
from uhr.models.samplers.core.plan import SamplingPlan, SamplingStage
from uhr.models.specs.spec import GuidanceKind


@dataclass(frozen=True)
class PromptInputs:
    """The prompts of a call, and the number of images per prompt. `length` is the number of text tokens; None
    means the length that the backbone was trained with."""

    prompt: Prompt
    negative: Prompt
    images: int = 1
    length: int | None = None


@dataclass(frozen=True)
class Conditions:
    """The encoded prompt and, for guidance by two passes, the encoded negative prompt and its scale. `counts`
    says how many tokens were read; it is empty if embeddings were given."""

    positive: Condition
    negative: Condition | None = None
    scale: float = 1.0
    counts: tuple[TokenCount, ...] = ()

    @property
    def branches(self) -> int:
        """Calls of the backbone for one guided velocity."""
        return 1 if self.negative is None else 2

    def map(self, change: Callable[[Condition], Condition]) -> Conditions:
        """Apply a change to both branches."""
        negative = None if self.negative is None else change(self.negative)
        return replace(self, positive=change(self.positive), negative=negative)

    def guided(self, kind: GuidanceKind, guidance: float | None) -> Conditions:
        """Return the same prompts with another guidance: an embedded number, or the scale of two passes. At
        scale 1 a single pass is enough."""
        if guidance is None or kind == "none":
            return self
        if kind == "cfg":
            return replace(self, negative=None) if guidance == 1 else replace(self, scale=guidance)
        embedded = torch.full((self.positive.text.shape[0],), guidance, device=self.positive.text.device)
        return self.map(lambda condition: replace(condition, guidance=embedded))

    def at(self, image_ids: torch.Tensor) -> Conditions:
        """Return the same prompts with the position ids of another grid of image tokens."""
        return self.map(lambda condition: replace(condition, image_ids=image_ids))

    def of_stage(self, stage: SamplingStage, kind: GuidanceKind, grid: tuple[int, int]) -> Conditions:
        """Return the conditioning of a stage with a grid of (rows, columns) tokens. It has the guidance and
        the attention of the stage, and its repeated text."""
        found = self.guided(kind, stage.guidance)
        if stage.branches == 1:
            found = replace(found, negative=None)
        if stage.text_tile is not None:
            found = repeated_text(found, grid, stage.text_tile)
        if stage.attention is None:
            return found
        return found.map(lambda condition: replace(condition, attention=stage.attention))


def repeated_text(conditions: Conditions, grid: tuple[int, int], tile: int) -> Conditions:
    """Repeat the text once for each whole tile of `tile` tokens per side in a grid of (rows, columns)."""
    from uhr.models.attention.proportional import duplicate_text

    def repeat(condition: Condition) -> Condition:
        text, ids = duplicate_text(condition.text, condition.text_ids, *grid, tile)
        return replace(condition, text=text, text_ids=ids)

    return conditions.map(repeat)


def tiled_batch(conditions: Conditions, times: int) -> Conditions:
    """Return the conditioning for a batch with `times` parts of each image, in which all first parts come
    first: the whole batch is repeated."""

    def rows(x: torch.Tensor | None) -> torch.Tensor | None:
        return None if x is None else torch.cat([x] * times)

    def repeat(condition: Condition) -> Condition:
        text = torch.cat([condition.text] * times)
        return replace(condition, text=text, pooled=rows(condition.pooled), guidance=rows(condition.guidance))

    return conditions.map(repeat)


def encode(pipeline: Any, inputs: PromptInputs, plan: SamplingPlan, device: torch.device) -> Conditions:
    """Encode both prompts with a pipeline's text encoders.

    If the backbone is guided by two passes ("cfg"), the negative prompt defaults to "", and the scale is the
    stages' guidance; otherwise the option `true_cfg_scale` is the scale of a negative prompt.

    Raises:
        UserError: if a prompt is missing or given twice, or the number of negative prompts does not fit.
    """
    facts, negative = plan.facts, inputs.negative
    two_passes = facts.guidance == "cfg" and {stage.guidance for stage in plan.stages} != {1}
    if two_passes and not negative.given:
        negative = Prompt("")
    family, dtype = facts.family, pipeline.transformer.dtype
    count = inputs.prompt.check("prompt", family.pooled)
    length = facts.text_length if inputs.length is None else inputs.length
    ids = family.image_ids(*facts.grid(plan.stages[0].size), device=device)

    def condition(found: Embedded, repeats: int) -> Condition:
        texts = {name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in found.texts.items()}
        return family.condition(texts, ids, None, dtype)

    encoders = family.encoders(pipeline, length)
    found = family.embed(encoders, inputs.prompt)
    positive = condition(found, inputs.images)
    if not negative.given:
        return Conditions(positive, counts=found.counts)
    if negative.check("negative prompt", family.pooled) not in (1, count):
        what = f"{negative.count} negative prompts for {count} prompts"
        raise UserError(what, "give one, or one for each")
    other = family.embed(encoders, negative).called("negative")
    negated = condition(other, inputs.images * count // negative.count)
    counts = (*found.counts, *other.counts)
    return Conditions(positive, negated, plan.options.true_cfg_scale, counts)
