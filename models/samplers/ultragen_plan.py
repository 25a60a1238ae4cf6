"""UltraGen's options, and the stages, windows and weights computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from uhr.base.errors import UserError
from uhr.models.attention.window_rules import WindowRules
from uhr.models.ops.choices import StageShift
from uhr.models.ops.patches.grid import grid
from uhr.models.ops.sizes import Size, base_size, check_enlarges
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.options import StagedOptions
from uhr.models.samplers.core.plan import (
    BackboneCalls,
    GuideUse,
    SamplingRequest,
    SamplingStage,
    VaeCall,
    WindowedAttention,
)
from uhr.models.samplers.core.sampler import FEW_STEPS
from uhr.models.samplers.core.stages import (
    base_stage,
    dense_stage,
    model_base,
    text_tokens,
    upper_levels,
)

if TYPE_CHECKING:
    from uhr.models.attention.layout import WindowLayout
    from uhr.models.surgery.base import Surgery

SKIPPED = 10 / 28
"""Share of the schedule that the warm start skips (paper's ablation: PSNR 28.70, 1.56 times as fast)."""

STRETCH = 1.5
"""A guide of less than this multiple of the native side is the enlarged base; a larger one is generated
first."""


class UltraGenOptions(StagedOptions):
    """Options of ultragen.

    skip:           steps of the schedule that the warm start skips; None is 10 of 28 in proportion (paper's
                    ablation), and none on few-step FLUX.2, which starts from pure noise (its configuration)
    warm_start:     pixels: the image below, enlarged and sharpened (paper, eq. 1); latents: bicubic on its
                    latents, without decoding (code)
    sharpening:     sigma of the unsharp mask's Gaussian, which the paper does not give; None does not sharpen
    guidance_high:  None is 4.5 if guidance is embedded and 8 if it takes two passes (the code's
                    configurations for FLUX.1 and klein-base)
    ntk:            factor on theta in the windowed stages, for image and guide; None is 10 (paper and code),
                    and 1 on few-step FLUX.2 (its configuration)
    base_ntk:       the same factor in the base pass: 1 is stock; the code has 10 there too
    base_steps:     steps of the base pass; None is the number of the model's card: 28 on FLUX.1-dev (code)
    base_shift:     factor of the base pass' static shift, 3 in the code; None is the model's own schedule,
                    which shifts by 3.158 on FLUX.1-dev
    ratio:          side of the image over that of the guide (paper: 4)
    window:         side of a window in image tokens; None is a quarter of the native grid, which is the
                    paper's 16 on FLUX
    rules:          which tokens attend to which, the paper's mask by default
                    (`attention.window_rules.WindowRules`)
    guide:          False leaves the guide's tokens out, so that there are only windows
    cached:         the guide's keys and values are computed at a stage's first step and kept (a flag of the
                    code). False runs the guide in every call, as in training: exact, and slower
    guide_adapters: names of the adapters that act only on guide tokens, besides those whose file says so (an
                    export's `adapters.usage`, UltraGen's by its keys); None are those that were loaded
                    otherwise and have UltraGen's modules. All others act on every token. The adapters of a
                    command are called adapter_0, adapter_1 in their order
    projection:     off (paper); code: its undocumented projected flow, whose weight rises again at the end;
                    decay: the same with I-Max's falling cosine
    below:          sides of the stages below the last over its own, rising: (0.25,). None is the recursion:
                    a quarter each (`ratio`) down to about the native size; an input image has no stages
                    below
    backend:        back end of the attention (`attention.call.Windows`)
    """

    skip: int | None = Field(default=None, ge=0)
    warm_start: Literal["pixels", "latents"] = "pixels"
    sharpening: float | None = Field(default=1.0, gt=0)
    ntk: float | None = Field(default=None, ge=1)
    base_ntk: float = Field(default=1.0, ge=1)
    base_steps: int | None = Field(default=None, gt=0)
    base_shift: float | None = Field(default=None, gt=0)
    ratio: int = Field(default=4, ge=1)
    window: int | None = Field(default=None, ge=1)
    rules: WindowRules = WindowRules()
    guide: bool = True
    cached: bool = True
    guide_adapters: tuple[str, ...] | None = None
    projection: Literal["off", "code", "decay"] = "off"
    below: tuple[float, ...] | None = None
    backend: Literal["auto", "gathered", "flex"] = "auto"


def window_of(options: UltraGenOptions, native_side: int) -> int:
    """Return the side of a window in image tokens, for a backbone of native_side^2 tokens. Raises UserError
    if it is not a multiple of the guide's ratio."""
    from uhr.models.attention.layout import WindowLayout, window_side

    window = options.window or window_side(native_side, options.ratio)
    return WindowLayout(window, window, window, options.ratio).window


def layout_of(facts: ModelFacts, size: Size, options: UltraGenOptions) -> WindowLayout:
    """Return the windows of an image of `size` px. Raises UserError if they do not fill it."""
    from uhr.models.attention.layout import WindowLayout

    window = window_of(options, facts.native_side)
    return WindowLayout.of_pixels(*size, facts.multiple, window, options.ratio)


def few_steps(facts: ModelFacts) -> bool:
    """Return whether a model is a distilled FLUX.2, for which UltraGen has a separate configuration."""
    return facts.family.name == "flux2" and facts.steps is not None and facts.steps < FEW_STEPS


def code_weight(step: int, steps: int, whole: int) -> float:
    """Return the weight of the code's projected flow in the last `steps` of `whole` steps: (1 + cos(pi (step
    + steps) / whole)) / 2. For 18 of 28 it falls from 0.283 to 0 at step 10 and rises to 0.146 at the end."""
    return 0.5 * (1 + math.cos(math.pi * (step + steps) / whole))


def filled(facts: ModelFacts, request: SamplingRequest, options: UltraGenOptions) -> UltraGenOptions:
    """Return the options with values for the model and size in place of None. Raises UserError for invalid
    values."""
    few = few_steps(facts)
    skip = options.skip
    if skip is None:
        skip = 0 if few else round(request.steps * SKIPPED)
    if skip >= request.steps:
        raise UserError(f"skip {skip} of {request.steps} steps", "skip fewer, or take more steps")
    return options.model_copy(
        update={
            "skip": skip,
            "ntk": options.ntk or (1.0 if few else 10.0),
            "window": window_of(options, facts.native_side),
            "below": _below(facts, request, options),
        }
    )


def _below(facts: ModelFacts, request: SamplingRequest, options: UltraGenOptions) -> tuple[float, ...]:
    """Sides of the stages below the last over its own."""
    if options.below is not None:
        shares = [*options.below, 1.0]
        if min(shares) <= 0 or any(b <= a for a, b in pairwise(shares)):
            what = f"below={list(options.below)} is invalid"
            raise UserError(what, "give rising shares between 0 and 1, such as [0.25]")
        return options.below
    side, share, found = math.sqrt(request.height * request.width), 1 / options.ratio, []
    while not request.image and share < 1 and share * side >= STRETCH * facts.native:
        height, width = _lower(facts, request, options, share)
        # rounded to whole windows it may not be larger than the base
        if height * width > facts.native**2:
            found.insert(0, share)
        share /= options.ratio
    return tuple(found)


def _lower(facts: ModelFacts, request: SamplingRequest, options: UltraGenOptions, share: float) -> Size:
    """The size, in whole windows, of a stage with about this share of the target's side."""
    unit = window_of(options, facts.native_side) * facts.multiple
    side = max(unit, int(share * math.sqrt(request.height * request.width)))
    return base_size(*request.size, side, unit)


def stages_of(facts: ModelFacts, request: SamplingRequest, options: UltraGenOptions) -> list[SamplingStage]:
    """Return the base pass, unless an image is given, and the windowed stages, each of whole windows, for
    filled options. The last stage is the target."""
    assert options.below is not None
    levels = upper_levels(facts, request.steps, options.shift, options.shift_factor)[options.skip :]
    lower = [_lower(facts, request, options, share) for share in options.below]
    for size in lower:
        check_enlarges(size, facts.native)
    stages = [_windowed(facts, request, options, size, levels) for size in [*lower, request.size]]
    if request.image:
        return stages
    if options.base_shift is None:
        base = model_base(facts, request, options.base_steps)
    else:
        steps = options.base_steps or facts.steps or request.steps
        base = base_stage(facts, request, upper_levels(facts, steps, StageShift.STATIC, options.base_shift))
    return [replace(base, surgeries=_positions(options.base_ntk)), *stages]


def _windowed(
    facts: ModelFacts,
    request: SamplingRequest,
    options: UltraGenOptions,
    size: Size,
    levels: Sequence[float],
) -> SamplingStage:
    """A stage with windowed attention."""
    from uhr.models.attention.call import AttentionCalls

    layout = layout_of(facts, size, options)
    guide: GuideUse = "none" if not options.guide else "kept" if options.cached else "in every call"
    windows = WindowedAttention(layout, options.rules, guide)
    calls = BackboneCalls(len(levels) - 1, layout.tokens, text_tokens(facts, request), windows)
    return replace(
        dense_stage(facts, request, size, levels),
        calls=(calls,),
        boxes=tuple(grid(*size, layout.window * facts.multiple, overlap=0)),
        surgeries=(AttentionCalls(), *_positions(options.ntk or 1.0)),
    )


def _positions(ntk: float) -> tuple[Surgery, ...]:
    from uhr.models.surgery.rope import RopeNtk

    return () if ntk == 1 else (RopeNtk(factor=ntk),)


def vae_calls_of(
    request: SamplingRequest, options: UltraGenOptions, stages: Sequence[SamplingStage]
) -> list[list[VaeCall]]:
    """Return the VAE's passes in each stage, for filled options: the image below is encoded for the guide
    (unless its latents have the guide's size), and enlarged for the start. An image below is decoded once."""
    found: list[list[VaeCall]] = [[] for _ in stages]
    for index, stage in enumerate(stages):
        below = stages[index - 1].size if index else None
        if below is None and not request.image:
            continue
        reduced = stage.height // options.ratio, stage.width // options.ratio
        warm = stage.sigmas[0] < 1 or options.projection != "off"
        # latents are needed for the guide, and for a start that is computed from latents
        latents = options.guide or (warm and options.warm_start == "latents" and below is None)
        coded = [reduced] if latents and below != reduced else []
        coded += [stage.size] if warm and options.warm_start == "pixels" else []
        found[index] += [VaeCall("encode", *size) for size in coded]
        if coded and below is not None:
            found[index - 1].append(VaeCall("decode", *below))
    found[-1].append(VaeCall("decode", *stages[-1].size))
    return found
