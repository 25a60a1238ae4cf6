"""The guidance of each stage, known before any weights are loaded.

The guidance of the call applies to the base pass. The stages above it have the sampler's published guidance,
or that of an option. If an image replaces the base pass, the guidance of the call applies to every stage; if
the call gives none, the published one does.
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

StageGuidance = tuple[float | None, ...]


@dataclass(frozen=True)
class UpperGuidance:
    """Guidance of the stages above the base pass: the numbers of `option`, or the published ones, one for
    each stage (`options.PerStage`). With neither it is the guidance of the call."""

    option: str | None = None
    given: PerStage = ()
    published: PerStage = ()

    def at(self, index: int, guidance: float | None, has_base: bool) -> float | None:
        """Return the guidance of the index-th stage; `guidance` is the call's, `has_base` whether there is a
        base pass."""
        if self.given:
            return pick(self.given, index)
        if not self.published:
            return guidance
        return pick(self.published, index) if guidance is None or has_base else guidance


def upper_guidance(
    facts: ModelFacts, options: Any, embedded: float | None = None, cfg: float | None = None
) -> UpperGuidance:
    """Return the guidance of the stages above the base pass: the option `guidance_high` if it is set, else
    the published number. A method may publish one number for backbones that embed guidance, and another for
    guidance by two passes."""
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
    """Return a plan of these stages with the guidance of each.

    Args:
        upper: None is `upper_guidance(facts, options)`.
        card: the default guidance of a call, instead of the model card's.
        true_cfg: the scale of a negative prompt to check; None is the option `true_cfg_scale`.

    Raises:
        UserError: for guidance, options or a negative prompt that would have no effect.
    """
    upper = upper or upper_guidance(facts, options)
    guidance, has_base, kind = request.guidance, stages[0].name == "base", facts.guidance
    if guidance is None and facts.described and None in _numbers(kind, None, upper, has_base, len(stages)):
        guidance = facts.guidance_scale if card is None else card
    numbers = _numbers(kind, guidance, upper, has_base, len(stages))
    if kind == "none" and getattr(options, "guidance_high", None) is not None:
        raise UserError("this backbone takes no guidance", "leave out guidance_high")
    _check(kind, numbers, guidance, upper, has_base)
    _check_passes(kind, options.true_cfg_scale if true_cfg is None else true_cfg, numbers, request.negative)
    guided = (
        replace(stage, guidance=number, branches=_branches(kind, number, request.negative))
        for stage, number in zip(stages, numbers, strict=True)
    )
    return SamplingPlan(facts, request, options, tuple(guided), guidance)


def _numbers(
    kind: GuidanceKind, guidance: float | None, upper: UpperGuidance, has_base: bool, count: int
) -> StageGuidance:
    """The guidance of each stage: the embedded number, the scale of two passes (1: a single pass), or None if
    the backbone takes none or none is known."""
    if kind == "none":
        return (None,) * count
    above = (upper.at(index, guidance, has_base) for index in range(count - has_base))
    return (guidance, *above) if has_base else tuple(above)


def _branches(kind: GuidanceKind, guidance: float | None, negative: bool) -> int:
    """Calls of the backbone for one guided velocity."""
    if kind == "cfg":
        return 1 if guidance == 1 else 2
    return 2 if negative else 1


def _check(
    kind: GuidanceKind, numbers: StageGuidance, guidance: float | None, upper: UpperGuidance, has_base: bool
) -> None:
    if guidance is not None and not math.isfinite(guidance):
        raise UserError(f"guidance {guidance:g} is invalid", "give a finite number")
    if kind == "none" and guidance:
        what = f"guidance {guidance:g} is given, and this backbone takes none"
        raise UserError(what, "leave it out, or give a negative prompt and true_cfg_scale")
    if kind != "none" and None in numbers:
        what = "this backbone requires a guidance scale, and no spec describes its default"
        raise UserError(what, "give the number of its model card")
    if not has_base and guidance is not None and upper.given:
        what = f"guidance {guidance:g} has no effect: {upper.option} is given, and there is no base pass"
        raise UserError(what, "leave one of them out")


def _check_passes(kind: GuidanceKind, true_cfg: float, numbers: StageGuidance, negative: bool) -> None:
    """Raise UserError for a negative prompt or a scale of two passes that would have no effect."""
    if kind != "cfg":
        if negative and true_cfg == 1:
            what = "a negative prompt has no effect at true_cfg_scale 1"
            raise UserError(what, "set true_cfg_scale, for example to 3.5")
        if true_cfg != 1 and not negative:
            what = f"true_cfg_scale {true_cfg:g} requires a negative prompt"
            raise UserError(what, 'give one, which may be ""')
        return
    if true_cfg != 1:
        raise UserError(f"true_cfg_scale {true_cfg:g} is given", "here guidance_scale is that scale")
    if negative and set(numbers) == {1}:
        raise UserError("a negative prompt has no effect at guidance 1", "raise it, for example to 4")


def describe(numbers: Sequence[float | None]) -> str:
    """Return the stages' guidance as text without repetitions: `guidance 3.5, then 7.5`."""
    given = [number for i, number in enumerate(numbers) if number is not None and number not in numbers[:i]]
    return "guidance " + ", then ".join(f"{number:g}" for number in given) if given else "no guidance"
