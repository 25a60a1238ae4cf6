"""The guidance of each stage, known before any weights are loaded.

The call's number is of the base pass; the stages above it have the sampler's published one, or the one of
their option. Without a base pass, since an image replaces it, the call's number is of every stage; a call
that names none leaves them the published one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from uhr.base.errors import UserError
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.options import PerStage, pick
from uhr.models.samplers.core.plan import SamplingPlan, SamplingRequest, SamplingStage
from uhr.models.specs.spec import GuidanceKind

Numbers = tuple[float | None, ...]


@dataclass(frozen=True)
class UpperGuidance:
    """Guidance of the stages above the base pass: the numbers that `option` gives, or the published ones,
    each by stage (`options.PerStage`); with neither it is the call's own."""

    option: str | None = None
    given: PerStage = ()
    published: PerStage = ()

    def at(self, index: int, guidance: float | None, based: bool) -> float | None:
        """Of the index-th stage; `guidance` is the call's, and `based` whether there is a base pass."""
        if self.given:
            return pick(self.given, index)
        if not self.published:
            return guidance
        return pick(self.published, index) if guidance is None or based else guidance


def upper_guidance(
    facts: ModelFacts, options: Any, embedded: float | None = None, cfg: float | None = None
) -> UpperGuidance:
    """By the option `guidance_high` where there is one, else the number that was published for backbones that
    embed guidance, or for those of two passes."""
    high = getattr(options, "guidance_high", None)
    if high is not None:
        return UpperGuidance("guidance_high", (high,))
    number = {"embedded": embedded, "cfg": cfg, "none": None}[facts.guidance]
    return UpperGuidance(published=() if number is None else (number,))


def guided_plan(
    facts: ModelFacts,
    request: SamplingRequest,
    options: Any,
    stages: Sequence[SamplingStage],
    upper: UpperGuidance | None = None,
    *,
    card: float | None = None,
    true_cfg: float | None = None,
) -> SamplingPlan:
    """A plan of these stages with the guidance of each.

    Args:
        upper: None is `upper_guidance(facts, options)`.
        card: of a call that names none, in place of the model card's.
        true_cfg: the scale of a negative prompt that is checked; None is the option `true_cfg_scale`.

    Raises:
        UserError: for guidance, options or a negative prompt that would be ignored in silence.
    """
    upper = upper or upper_guidance(facts, options)
    guidance, based, kind = request.guidance, stages[0].name == "base", facts.guidance
    if guidance is None and facts.described and None in _numbers(kind, None, upper, based, len(stages)):
        guidance = facts.guidance_scale if card is None else card
    numbers = _numbers(kind, guidance, upper, based, len(stages))
    if kind == "none" and getattr(options, "guidance_high", None) is not None:
        raise UserError("this backbone takes no guidance", "leave out guidance_high")
    _check(kind, numbers, guidance, upper, based)
    _check_passes(kind, options.true_cfg_scale if true_cfg is None else true_cfg, numbers, request.negative)
    guided = (
        replace(stage, guidance=number, branches=_branches(kind, number, request.negative))
        for stage, number in zip(stages, numbers, strict=True)
    )
    return SamplingPlan(facts, request, options, tuple(guided), guidance)


def _numbers(
    kind: GuidanceKind, guidance: float | None, upper: UpperGuidance, based: bool, count: int
) -> Numbers:
    """Of each stage: what a backbone that embeds it takes, the scale of two passes (1: a single one), or None
    where there is none, or nobody gives it."""
    if kind == "none":
        return (None,) * count
    above = (upper.at(index, guidance, based) for index in range(count - based))
    return (guidance, *above) if based else tuple(above)


def _branches(kind: GuidanceKind, guidance: float | None, negative: bool) -> int:
    """Calls of the backbone that one guided velocity takes."""
    if kind == "cfg":
        return 1 if guidance == 1 else 2
    return 2 if negative else 1


def _check(
    kind: GuidanceKind, numbers: Numbers, guidance: float | None, upper: UpperGuidance, based: bool
) -> None:
    if guidance is not None and not math.isfinite(guidance):
        raise UserError(f"guidance {guidance:g}", "give a finite number")
    if kind == "none" and guidance:
        what = f"guidance {guidance:g} is given, and this backbone takes none"
        raise UserError(what, "leave it out, or give a negative prompt and true_cfg_scale")
    if kind != "none" and None in numbers:
        what = "this backbone wants a guidance scale, and no spec that says which describes it"
        raise UserError(what, "give the number of its model card")
    if not based and guidance is not None and upper.given:
        what = (
            f"guidance {guidance:g} would reach no stage: {upper.option} is given, and there is no base pass"
        )
        raise UserError(what, "leave one of them out")


def _check_passes(kind: GuidanceKind, true_cfg: float, numbers: Numbers, negative: bool) -> None:
    """UserError for a negative prompt or a scale of two passes that would be ignored in silence."""
    if kind != "cfg":
        if negative and true_cfg == 1:
            what = "a negative prompt has no effect at true_cfg_scale 1"
            raise UserError(what, "set true_cfg_scale, to 3.5 say")
        if true_cfg != 1 and not negative:
            raise UserError(f"true_cfg_scale {true_cfg:g} wants a negative prompt", 'give one; "" is one')
        return
    if true_cfg != 1:
        raise UserError(f"true_cfg_scale {true_cfg:g} is given", "here guidance_scale is that scale")
    if negative and set(numbers) == {1}:
        raise UserError("a negative prompt has no effect at guidance 1", "raise it, to 4 say")


def describe(numbers: Sequence[float | None]) -> str:
    """The stages' guidance as text, repetitions left out: `guidance 3.5, then 7.5`."""
    given = [number for i, number in enumerate(numbers) if number is not None and number not in numbers[:i]]
    return "guidance " + ", then ".join(f"{number:g}" for number in given) if given else "no guidance"
