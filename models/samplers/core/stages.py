"""Functions that make stages and schedules, from which samplers build their plans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from uhr.base.errors import UserError
from uhr.models.ops.choices import ShiftPolicy, StageShift
from uhr.models.ops.sizes import Size
from uhr.models.samplers.core.facts import ModelFacts
from uhr.models.samplers.core.plan import BackboneCalls, SamplingRequest, SamplingStage
from uhr.models.samplers.core.toolkit import Native, Toolkit


def sized(size: Size) -> str:
    """Return the name of a stage above the base: its size, such as `2048x2048`."""
    return f"{size[1]}x{size[0]}"


def text_tokens(facts: ModelFacts, request: SamplingRequest) -> int:
    """Return the number of text tokens of one prompt."""
    return facts.text_length if request.text_length is None else request.text_length


def dense_stage(
    facts: ModelFacts,
    request: SamplingRequest,
    size: Size,
    sigmas: Sequence[float],
    toolkit: Toolkit | None = None,
    swin: bool = False,
) -> SamplingStage:
    """Return a stage in which every call covers the whole grid.

    Args:
        toolkit: changes of the backbone above the native size, including repeated text.
        swin: whether the grid has one more row and column at every other step (`swin.py`).
    """
    steps, (rows, columns), text = len(sigmas) - 1, facts.grid(size), text_tokens(facts, request)
    stage = SamplingStage(sized(size), *size, tuple(sigmas))
    if toolkit is not None:
        native = Native(facts.native_side, facts.text_length)
        if toolkit.text_duplication:
            from uhr.models.attention.proportional import text_copies

            text *= text_copies(rows, columns, native.side)
            stage = replace(stage, text_tile=native.side)
        surgeries = toolkit.surgeries(rows * columns, native)
        stage = replace(stage, surgeries=surgeries, attention=toolkit.attention(rows * columns, native))
    wider = 0
    if swin:
        from uhr.models.ops.swin import shifts

        wider = sum(shifts(step) for step in range(steps))
    counted = (
        BackboneCalls(wider, (rows + 1) * (columns + 1), text),
        BackboneCalls(steps - wider, rows * columns, text),
    )
    return replace(stage, calls=tuple(each for each in counted if each.count))


def base_stage(
    facts: ModelFacts, request: SamplingRequest, sigmas: Sequence[float], size: Size | None = None
) -> SamplingStage:
    """Return the base pass over these noise levels. `size` None means about the native area, in the aspect
    ratio of the request."""
    return replace(dense_stage(facts, request, size or facts.base_size(request.size), sigmas), name="base")


def model_base(facts: ModelFacts, request: SamplingRequest, steps: int | None) -> SamplingStage:
    """Return the base pass over the model's own schedule. `steps` None means the number of the model's
    card."""
    from uhr.models.ops.schedules import ShiftOutOfRange

    size = facts.base_size(request.size)
    try:
        levels = facts.schedule(steps or facts.steps or request.steps, facts.tokens(size))
    except ShiftOutOfRange as error:
        fix = f"the base pass has about the area of native_size, {facts.native_size} px: set it lower"
        raise error.with_fix(fix) from error
    return base_stage(facts, request, levels, size)


def upper_levels(facts: ModelFacts, steps: int, shift: StageShift | None, factor: float) -> list[float]:
    """Return `steps` + 1 noise levels of a stage above the native size. `factor` is the factor of a static
    shift."""
    from uhr.models.ops.schedules import ShiftOutOfRange

    if (shift or facts.family.stage_shift) is StageShift.STATIC:
        return facts.schedule(steps, 0, ShiftPolicy.STATIC, factor)
    try:
        return facts.schedule(steps, facts.native_side**2, ShiftPolicy.DYNAMIC)
    except ShiftOutOfRange as error:
        raise error.with_fix("take a static one: set shift=static") from error


def after_strength(sigmas: Sequence[float], strength: float) -> list[float]:
    """Return the last part of a schedule of N steps: from index N - N * strength on, as in diffusers'
    FluxImg2Img.

    The level at that index is the true noise level: 0.875 for strength 0.7 under shift 3. Raises UserError
    unless the strength is in (0, 1].
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength:g} is invalid", "give more than 0 and at most 1")
    steps = len(sigmas) - 1
    # rounded first: 30 * (1 - 0.7) is 9, and slightly more in floating point
    start = math.floor(round(steps * (1 - strength), 6))
    return list(sigmas[min(start, steps - 1) :])


def check_begins_below_noise(sigmas: Sequence[float], strength: float) -> None:
    """Raise UserError if a path from an image begins at pure noise, which contains nothing of it."""
    if sigmas[0] == 1:
        steps = len(sigmas) - 1
        what = (
            f"at strength {strength:g} all {steps} steps are taken, from pure noise: the image has no effect"
        )
        fix = (
            "lower the strength, or take more steps" if strength < 1 else "lower the strength, such as to 0.7"
        )
        raise UserError(what, fix)


def from_level(sigmas: Sequence[float], level: float) -> list[float]:
    """Return the part of a schedule from its first level that is at most `level`; at least the last step.
    Raises UserError unless the level is in (0, 1]."""
    if not 0 < level <= 1:
        raise UserError(f"start level {level:g} is invalid", "give more than 0 and at most 1")
    # levels are published with four digits
    start = next(i for i, sigma in enumerate(sigmas) if sigma <= level + 1e-4)
    return list(sigmas[min(start, len(sigmas) - 2) :])
