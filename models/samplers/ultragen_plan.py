"""UltraGen's options, and the stages, windows and weights that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from uhr.base.errors import UserError
from uhr.models.attention.window_rules import WindowRules
from uhr.models.ops.patches import grid
from uhr.models.ops.sizes import Size, base_size, check_enlarges
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.options import StagedOptions
from uhr.models.samplers.core.plan import (
    BackboneCalls,
    Coding,
    GuideUse,
    SamplingRequest,
    SamplingStage,
    WindowedAttention,
)
from uhr.models.samplers.core.sampler import FEW_STEPS
from uhr.models.samplers.core.stages import dense_stage, model_base, text_tokens, upper_levels

if TYPE_CHECKING:
    from uhr.models.attention.layout import WindowLayout
    from uhr.models.surgery.base import Surgery

SKIPPED = 10 / 28
"""Share of the schedule that the warm start skips (paper's ablation: PSNR 28.70, 1.56 times as fast)."""

STRETCH = 1.5
"""A guide that is less than this many times the native side is the base, enlarged; a larger one is generated
first."""


class UltraGenOptions(StagedOptions):
    """Options of ultragen.

    skip:           steps of the schedule that the warm start skips; None is 10 of 28 in proportion (paper's
                    ablation), and none on few-step FLUX.2, which starts from pure noise (its configuration)
    warm_start:     pixels: the image below, enlarged and sharpened (paper, eq. 1); latents: bicubic on its
                    latents, without decoding (code)
    sharpening:     sigma of the Gaussian of the unsharp mask, which the paper does not name; None is none
    guidance_high:  None is 4.5 where guidance is embedded and 8 where it takes two passes (code's
                    configurations for FLUX.1 and klein-base)
    ntk:            theta of the windowed stages times this, image and guide alike; None is 10 (paper and
                    code), and 1 on few-step FLUX.2 (its configuration)
    base_ntk:       the same of the base pass: 1 is stock; the code has 10 there too
    base_steps:     of the base pass; None is what the model's card says: 28 on FLUX.1-dev (code)
    ratio:          sides of image over guide (paper: 4)
    window:         side of a window in image tokens; None is a quarter of the native grid, the paper's 16 of
                    FLUX
    rules:          who attends to whom, the paper's mask by default (`attention.rules.WindowRules`)
    guide:          False leaves the guide's tokens out: windows alone
    cached:         the guide's keys and values are computed at a stage's first step and kept (a flag of the
                    code). False runs the guide in every call, as in training: exact, and slower
    guide_adapters: names of the adapters that act on guide tokens alone, beside those whose file says so (an
                    export's `adapters.usage`, UltraGen's by its keys); None are those that were loaded
                    otherwise and have UltraGen's modules. All others act on every token. A command's are
                    called adapter_0, adapter_1 in their order
    projection:     off (paper); code: its hidden projected flow, whose weight rises again towards the end;
                    decay: the same with I-Max's falling cosine
    below:          sides of the stages below the last over its own, rising: (0.25,). None is the recursion:
                    a quarter each (`ratio`) down to about the native size; a given image goes straight to
                    the target
    backend:        of the attention (`attention.call.Windows`)
    """

    skip: int | None = Field(default=None, ge=0)
    warm_start: Literal["pixels", "latents"] = "pixels"
    sharpening: float | None = Field(default=1.0, gt=0)
    ntk: float | None = Field(default=None, ge=1)
    base_ntk: float = Field(default=1.0, ge=1)
    base_steps: int | None = Field(default=None, gt=0)
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
    """Side of a window in image tokens, for a backbone of native_side^2 tokens; UserError if it does not
    divide by the guide's ratio."""
    from uhr.models.attention.layout import WindowLayout, window_side

    window = options.window or window_side(native_side, options.ratio)
    return WindowLayout(window, window, window, options.ratio).window


def layout_of(facts: ModelFacts, size: Size, options: UltraGenOptions) -> WindowLayout:
    """The windows of an image of `size` px; UserError if they do not fill it."""
    from uhr.models.attention.layout import WindowLayout

    window = window_of(options, facts.native_side)
    return WindowLayout.of_pixels(*size, facts.multiple, window, options.ratio)


def few_steps(facts: ModelFacts) -> bool:
    """Whether a model is a distilled FLUX.2, for which UltraGen has a configuration of its own."""
    return facts.family.name == "flux2" and facts.steps is not None and facts.steps < FEW_STEPS


def code_weight(step: int, steps: int, whole: int) -> float:
    """The weight of the code's projected flow in the last `steps` of `whole`: (1 + cos(pi (step + steps) /
    whole)) / 2. Of 18 in 28 it falls from 0.283 to 0 at step 10 and rises to 0.146 at the end."""
    return 0.5 * (1 + math.cos(math.pi * (step + steps) / whole))


def filled(facts: ModelFacts, request: SamplingRequest, options: UltraGenOptions) -> UltraGenOptions:
    """The options with what follows from model and size in place of None; UserError for what cannot be."""
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
            raise UserError(f"below={list(options.below)}", "give rising shares between 0 and 1: [0.25], say")
        return options.below
    side, share, found = math.sqrt(request.height * request.width), 1 / options.ratio, []
    while not request.image and share < 1 and share * side >= STRETCH * facts.native:
        height, width = _lower(facts, request, options, share)
        # in whole windows it may come out no larger than the base
        if height * width > facts.native**2:
            found.insert(0, share)
        share /= options.ratio
    return tuple(found)


def _lower(facts: ModelFacts, request: SamplingRequest, options: UltraGenOptions, share: float) -> Size:
    """The size of a stage of about this share of the target's side, in whole windows."""
    unit = window_of(options, facts.native_side) * facts.multiple
    side = max(unit, int(share * math.sqrt(request.height * request.width)))
    return base_size(*request.size, side, unit)


def stages_of(facts: ModelFacts, request: SamplingRequest, options: UltraGenOptions) -> list[SamplingStage]:
    """The base pass, unless an image is given, and the windowed stages, by filled options: of whole windows
    each, the last of them the target."""
    assert options.below is not None
    levels = upper_levels(facts, request.steps, options.shift, options.shift_factor)[options.skip :]
    lower = [_lower(facts, request, options, share) for share in options.below]
    for size in lower:
        check_enlarges(size, facts.native)
    stages = [_windowed(facts, request, options, size, levels) for size in [*lower, request.size]]
    if request.image:
        return stages
    base = model_base(facts, request, options.base_steps)
    return [replace(base, surgeries=_positions(options.base_ntk)), *stages]


def _windowed(
    facts: ModelFacts,
    request: SamplingRequest,
    options: UltraGenOptions,
    size: Size,
    levels: Sequence[float],
) -> SamplingStage:
    """A stage whose calls attend in windows."""
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


def codings_of(
    request: SamplingRequest, options: UltraGenOptions, stages: Sequence[SamplingStage]
) -> list[list[Coding]]:
    """What the VAE codes in each stage, by filled options: the image below for the guide (whose latents are
    it where they have its size), and enlarged for the start. An image below is decoded once."""
    found: list[list[Coding]] = [[] for _ in stages]
    for index, stage in enumerate(stages):
        below = stages[index - 1].size if index else None
        if below is None and not request.image:
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
    found[-1].append(Coding("decode", *stages[-1].size))
    return found
