"""What each stage of a call is guided by, known before any weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from uhr.base.errors import UserError
from uhr.models.conditions import check_cfg
from uhr.models.spec import GuidanceKind, ModelSpec
from uhr.models.stages import Stage


class Guiding:
    """Base of the samplers, as far as guidance goes.

    The call's number is of the base pass; the stages above it have the sampler's published one, or the one
    of their option. Without a base pass, since a picture takes its place, the call's number is of every
    stage; a call that names none leaves them the published one.
    """

    published_guidance: ClassVar[float | None] = None
    """Of the stages above the base, for backbones that embed guidance."""

    @classmethod
    def default_guidance(cls, spec: ModelSpec) -> float | None:
        """Guidance of a call that names none: its card's."""
        return spec.guidance_scale

    @classmethod
    def guidance_option(cls, kind: GuidanceKind, options: Any, index: int = 0) -> tuple[str, Any] | None:
        """The option that says something of the stages above the base, and its number for the index-th."""
        number = getattr(options, "guidance_high", None)
        return None if number is None else ("guidance_high", number)

    @classmethod
    def guidance_above(cls, kind: GuidanceKind, options: Any, index: int) -> float | None:
        """By resolved options, of the index-th stage above the base where no option says anything; None is
        the call's own."""
        return cls.published_guidance if kind == "embedded" else None

    @classmethod
    def guidances(
        cls, kind: GuidanceKind, options: Any, guidance: float | None, plan: Sequence[Stage]
    ) -> list[float | None]:
        """Of each stage of a plan, by resolved options: what a backbone that embeds it is told, the scale of
        two passes (1: a single one), or None where there is none, or nobody says it."""
        if kind == "none":
            return [None] * len(plan)
        based = plan[0].name == "base"

        def above(index: int) -> float | None:
            option = cls.guidance_option(kind, options, index)
            if option is not None:
                return option[1]
            published = cls.guidance_above(kind, options, index)
            return published if guidance is None or (based and published is not None) else guidance

        return [guidance, *map(above, range(len(plan) - 1))] if based else [*map(above, range(len(plan)))]

    @classmethod
    def check_options(cls, options: Any, kind: GuidanceKind) -> None:
        """UserError for options that would be ignored in silence on a backbone that is guided so."""
        if kind == "none" and getattr(options, "guidance_high", None) is not None:
            raise UserError("this backbone takes no guidance", "leave out guidance_high")

    @classmethod
    def check_guidance(
        cls,
        kind: GuidanceKind,
        options: Any,
        told: Sequence[float | None],
        guidance: float | None,
        negative: bool,
        based: bool,
    ) -> None:
        """UserError for a call's guidance or negative prompt that would be ignored in silence; `told` are the
        `guidances` of the plan, which is `based` if it begins with a base pass."""
        cls.check_options(options, kind)
        if guidance is not None and not math.isfinite(guidance):
            raise UserError(f"guidance {guidance:g}", "give a finite number")
        if kind == "none" and guidance:
            what = f"guidance {guidance:g} is given, and this backbone takes none"
            raise UserError(what, "leave it out, or give a negative prompt and true_cfg_scale")
        if kind != "none" and None in told:
            what = "this backbone wants a guidance scale, and no spec that says which describes it"
            raise UserError(what, "give the number of its model card")
        option = cls.guidance_option(kind, options)
        if not based and guidance is not None and option is not None:
            what = (
                f"guidance {guidance:g} would reach no stage: {option[0]} is given, and there is no base pass"
            )
            raise UserError(what, "leave one of them out")
        cls.check_passes(kind, options.true_cfg_scale, told, negative)

    @classmethod
    def check_passes(
        cls, kind: GuidanceKind, true_cfg: float, told: Sequence[float | None], negative: bool
    ) -> None:
        """UserError for a negative prompt or a scale of two passes that would be ignored in silence."""
        if kind != "cfg":
            check_cfg(true_cfg, negative)
            return
        if true_cfg != 1:
            raise UserError(f"true_cfg_scale {true_cfg:g} is given", "here guidance_scale is that scale")
        if negative and set(told) == {1}:
            raise UserError("a negative prompt has no effect at guidance 1", "raise it, to 4 say")


def spoken(told: Sequence[float | None]) -> str:
    """The stages' guidance in words, repetitions left out: `guidance 3.5, then 7.5`."""
    numbers = [number for i, number in enumerate(told) if number is not None and number not in told[:i]]
    return "guidance " + ", then ".join(f"{number:g}" for number in numbers) if numbers else "no guidance"
