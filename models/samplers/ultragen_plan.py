"""What ultragen can be told, and the stages, windows and weights that follow from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from uhr.base.errors import UserError
from uhr.models.attention.layout import WindowLayout, window_side
from uhr.models.costs.work import Coding
from uhr.models.planning import FEW_STEPS
from uhr.models.samplers.options import UltraGenOptions
from uhr.models.sizes import Size, base_size, check_enlarges
from uhr.models.stages import Ask, Stage

SKIPPED = 10 / 28
"""Share of the schedule that the warm start skips (paper's ablation: PSNR 28.70, 1.56 times as fast)."""

STRETCH = 1.5
"""A guide that is less than this many times the native side is the base, enlarged; a larger one is painted
first."""


def window_of(options: UltraGenOptions, native_side: int) -> int:
    """Side of a window in image tokens, for a backbone of native_side^2 tokens; UserError if it does not
    divide by the guide's ratio."""
    window = options.window or window_side(native_side, options.ratio)
    return WindowLayout(window, window, window, options.ratio).window


def layout_of(size: Size, multiple: int, native_side: int, options: UltraGenOptions) -> WindowLayout:
    """The windows of a picture of `size` px, `multiple` px a token; UserError if they do not fill it."""
    return WindowLayout.of_pixels(*size, multiple, window_of(options, native_side), options.ratio)


def few_steps(family: str, model_steps: int | None) -> bool:
    """Whether a model is a distilled FLUX.2, for which UltraGen has a configuration of its own."""
    return family == "flux2" and model_steps is not None and model_steps < FEW_STEPS


def code_weight(step: int, steps: int, whole: int) -> float:
    """The weight of the code's projected flow in the last `steps` of `whole`: (1 + cos(pi (step + steps) /
    whole)) / 2. Of 18 in 28 it falls from 0.283 to 0 at step 10 and rises to 0.146 at the end."""
    return 0.5 * (1 + math.cos(math.pi * (step + steps) / whole))


def filled(ask: Ask, options: UltraGenOptions) -> UltraGenOptions:
    """The options with what follows from model and size in place of None; UserError for what cannot be."""
    few = few_steps(ask.family, ask.model_steps)
    skip = options.skip
    if skip is None:
        skip = 0 if few else round(ask.steps * SKIPPED)
    if skip >= ask.steps:
        raise UserError(f"skip {skip} of {ask.steps} steps", "skip fewer, or take more steps")
    return options.model_copy(
        update={
            "skip": skip,
            "ntk": options.ntk or (1.0 if few else 10.0),
            "window": window_of(options, ask.native_side),
            "below": _below(ask, options),
        }
    )


def _below(ask: Ask, options: UltraGenOptions) -> tuple[float, ...]:
    """Sides of the stages below the last over its own."""
    if options.below is not None:
        shares = [*options.below, 1.0]
        if min(shares) <= 0 or any(b <= a for a, b in pairwise(shares)):
            raise UserError(f"below={list(options.below)}", "give rising shares between 0 and 1: [0.25], say")
        return options.below
    side, share, found = math.sqrt(ask.height * ask.width), 1 / options.ratio, []
    while not ask.picture and share < 1 and share * side >= STRETCH * ask.native:
        height, width = _lower(ask, options, share)
        # in whole windows it may come out no larger than the base
        if height * width > ask.native**2:
            found.insert(0, share)
        share /= options.ratio
    return tuple(found)


def _lower(ask: Ask, options: UltraGenOptions, share: float) -> Size:
    """The size of a stage of about this share of the target's side, in whole windows."""
    unit = window_of(options, ask.native_side) * ask.multiple
    return base_size(*ask.size, max(unit, int(share * math.sqrt(ask.height * ask.width))), unit)


def stage_sizes(ask: Ask, options: UltraGenOptions) -> list[Size]:
    """Sizes of the windowed stages by filled options, of whole windows each, the last of them the target."""
    assert options.below is not None
    lower = [_lower(ask, options, share) for share in options.below]
    for size in lower:
        check_enlarges(size, ask.native)
    return [*lower, ask.size]


def coded_stages(ask: Ask, options: UltraGenOptions, plan: Sequence[Stage]) -> list[tuple[Coding, ...]]:
    """What the VAE codes in each stage, by filled options: the picture below for the guide (whose latents are
    it where they have its size), and enlarged for the start. A picture below is decoded once."""
    found: list[list[Coding]] = [[] for _ in plan]
    for index, stage in enumerate(plan):
        below = plan[index - 1].size if index else None
        if below is None and not ask.picture:
            continue
        reduced = stage.height // options.ratio, stage.width // options.ratio
        warm = stage.sigmas[0] < 1 or options.projection != "off"
        # whose latents: the guide's, and the start's where it is made of latents
        latents = options.guide or (warm and options.warm_start == "latents" and below is None)
        coded = [reduced] if latents and below != reduced else []
        coded += [stage.size] if warm and options.warm_start == "pixels" else []
        found[index] += [Coding("encode", *size) for size in coded]
        if coded and below is not None:
            found[index - 1].append(Coding("decode", *below))
    found[-1].append(Coding("decode", *plan[-1].size))
    return [tuple(codings) for codings in found]
