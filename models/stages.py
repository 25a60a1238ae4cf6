"""The passes of a sampler that paints small first: what each is, and where its path begins.

A plan is a list of stages, made without any weights: the same one is checked, shown, run and written down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.utils import BaseOutput

from uhr.base.errors import UserError
from uhr.models.choices import StageShift
from uhr.models.schedules import Runaway
from uhr.models.sizes import Size, base_size
from uhr.models.spec import ShiftPolicy


@dataclass(frozen=True)
class Stage:
    """Euler steps over one size (px): `sigmas` are steps + 1 falling noise levels; each step takes `calls`
    passes of the backbone for every branch of guidance."""

    name: str
    height: int
    width: int
    sigmas: tuple[float, ...]
    calls: int = 1

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def rounds(self) -> int:
        """How often the steps are gone through."""
        return 1

    @property
    def size(self) -> Size:
        return self.height, self.width

    def describe(self) -> dict[str, Any]:
        """JSON, for the picture's record."""
        return {
            "name": self.name,
            "height": self.height,
            "width": self.width,
            "sigmas": list(self.sigmas),
            "calls_per_step": self.calls,
        }


def sized(height: int, width: int, sigmas: Sequence[float], calls: int = 1) -> Stage:
    """A stage that is named after its size."""
    return Stage(f"{width}x{height}", height, width, tuple(sigmas), calls)


def total_calls(plan: Sequence[Stage], branches: int = 1) -> int:
    """Passes of the backbone that a whole plan takes, with 2 branches where guidance takes two."""
    return branches * sum(stage.steps * stage.calls for stage in plan)


def total_steps(plan: Sequence[Stage]) -> int:
    """Steps of a whole plan: what the step callback is called for."""
    return sum(stage.steps * stage.rounds for stage in plan)


class Schedule(Protocol):
    """`SamplerPipeline.schedule`: steps + 1 noise levels from 1 to 0; `shift` None is as published."""

    def __call__(
        self, steps: int, tokens: int, shift: ShiftPolicy | str | None = None, factor: float = 3.0
    ) -> list[float]: ...


@dataclass(frozen=True)
class Ask:
    """What a plan is made from. Sizes in px; sides are multiples of `multiple`, `native_size` is the side of
    the square that the backbone was trained at (None: unknown), `picture` whether one is given in place of
    the base pass."""

    height: int
    width: int
    steps: int
    native_size: int | None
    multiple: int
    family: str
    schedule: Schedule
    picture: bool = False
    model_steps: int | None = None
    """Those of the model's card, None where no spec describes it."""

    @property
    def native(self) -> int:
        """Side of the training square; UserError where neither a spec nor the user says it."""
        if self.native_size is None:
            fix = "give native_size, the side in px of its training square"
            raise UserError("no spec describes this backbone", fix)
        return self.native_size

    def at(self, size: Size) -> Ask:
        """The same of another size."""
        return replace(self, height=size[0], width=size[1])

    @property
    def size(self) -> Size:
        return self.height, self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the target's tokens."""
        return self.height // self.multiple, self.width // self.multiple

    @property
    def native_side(self) -> int:
        """Side of the training square in tokens."""
        return self.native // self.multiple

    def base(self, sigmas: Sequence[float], size: Size | None = None) -> Stage:
        """The base pass: over `size`, or one of about the native area and the target's aspect ratio."""
        height, width = size or base_size(*self.size, self.native, self.multiple)
        return Stage("base", height, width, tuple(sigmas))

    def published_base(self, steps: int | None) -> Stage:
        """A base pass over the model's own schedule; `steps` None is as many as its card says."""
        stage = self.base(())
        tokens = stage.height * stage.width // self.multiple**2
        try:
            levels = self.schedule(steps or self.model_steps or self.steps, tokens)
        except Runaway as error:
            fix = f"the base pass has about the area of native_size, {self.native} px: set it lower"
            raise error.mended(fix) from error
        return self.base(levels)

    def of_steps(self, steps: int | None) -> Ask:
        """The same with another number of steps; None is the same number."""
        return replace(self, steps=steps or self.steps)

    def levels(self, shift: StageShift | None, factor: float) -> list[float]:
        """`steps` + 1 noise levels of a stage above the native size."""
        if (shift or StageShift.usual(self.family)) is StageShift.STATIC:
            return self.schedule(self.steps, 0, ShiftPolicy.STATIC, factor)
        try:
            return self.schedule(self.steps, self.native_side**2, ShiftPolicy.DYNAMIC)
        except Runaway as error:
            raise error.mended("take a static one: set shift=static") from error


def after_strength(sigmas: Sequence[float], strength: float) -> list[float]:
    """The last `strength` of a schedule's steps, as FluxImg2Img counts them: from index N - N * strength.

    The level that stands there is the true noise level: 0.875 for strength 0.7 under shift 3.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength {strength:g}", "give more than 0, which changes nothing, and at most 1")
    steps = len(sigmas) - 1
    # rounded first: 30 * (1 - 0.7) is 9, and a hair more in floating point
    start = math.floor(round(steps * (1 - strength), 6))
    return list(sigmas[min(start, steps - 1) :])


def check_begins_below_noise(sigmas: Sequence[float], strength: float) -> None:
    """UserError where a path from a picture begins at pure noise, which shows nothing of it."""
    if sigmas[0] == 1:
        steps = len(sigmas) - 1
        what = (
            f"at strength {strength:g} all {steps} steps are taken, from pure noise: no picture shows through"
        )
        fix = "lower the strength, or take more steps" if strength < 1 else "lower the strength, to 0.7 say"
        raise UserError(what, fix)


def from_level(sigmas: Sequence[float], level: float) -> list[float]:
    """The part of a schedule from its first level that is at most `level`; at least the last step."""
    if not 0 < level <= 1:
        raise UserError(f"start level {level:g}", "give more than 0 and at most 1")
    # levels are published with four digits
    start = next(i for i, sigma in enumerate(sigmas) if sigma <= level + 1e-4)
    return list(sigmas[min(start, len(sigmas) - 2) :])


@dataclass
class StagedOutput(BaseOutput):
    """`images` as `output_type` says; `stages`, if asked for, holds those of every stage before the last."""

    images: Any
    stages: list[Any] | None = None


def pixels(image: Any) -> torch.Tensor:
    """A picture, or several of one size -> float32 [B, 3, H, W] in [-1, 1].

    Takes what diffusers' pipelines take: PIL pictures, arrays [(B,) H, W, 3] and tensors [(B,) 3, H, W],
    uint8 or float in [0, 1]; or lists of them. UserError for a picture that is transparent anywhere: the
    command keeps that beside the call (`sampling.pictures`), and nothing here does.
    """
    if isinstance(image, (list, tuple)):
        parts = [pixels(part) for part in image]
        if not parts:
            raise UserError("a list of no pictures is given", "give one or more")
        if len({part.shape[-2:] for part in parts}) != 1:
            raise UserError("the pictures of a batch differ in size", "give pictures of one size")
        return torch.cat(parts)
    if isinstance(image, torch.Tensor):
        found = image
    else:
        array = np.asarray(image if isinstance(image, np.ndarray) else _opaque(image))
        found = torch.from_numpy(array.copy())
        found = found.movedim(-1, -3) if found.ndim > 2 else found
    if found.dtype == torch.uint8:
        found = found.float() / 255
    if not found.dtype.is_floating_point:
        raise UserError(f"a picture of {found.dtype}", "give 8 bits a value, or floats in [0, 1]")
    found = found.float() if found.ndim == 4 else found.float()[None]
    if found.ndim != 4 or found.shape[1] != 3:
        raise UserError(
            f"a picture of shape {tuple(found.shape)}", "give RGB: [3, H, W] tensors, [H, W, 3] arrays"
        )
    return found * 2 - 1


def _opaque(picture: Any) -> Any:
    """A PIL picture as RGB."""
    if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        what = f"a picture of mode {picture.mode} with transparency, which a pipeline would drop"
        raise UserError(what, 'flatten it: .convert("RGB"); `uhr sample SAMPLER --image` keeps it')
    return picture.convert("RGB")


def for_each(pictures: torch.Tensor, batch: int) -> torch.Tensor:
    """Pictures [b, 3, h, w] for `batch` prompts: one for all, or one for each (in runs)."""
    if batch % len(pictures):
        raise UserError(f"{len(pictures)} pictures for {batch} prompts", "give one, or one for each")
    return pictures.repeat_interleave(batch // len(pictures), dim=0)


def check_aspect(picture: Size, target: Size, multiple: int) -> None:
    """UserError with a size that fits, where `target` would stretch the picture by more than its rounding to
    the token grid."""
    tall, wide = picture
    height, width = target
    if abs(width - height * wide / tall) <= multiple or abs(height - width * tall / wide) <= multiple:
        return
    scale = math.sqrt(height * width / (tall * wide))
    fit = "x".join(str(max(1, round(side * scale / multiple)) * multiple) for side in (wide, tall))
    raise UserError(f"a picture of {wide}x{tall} does not fit {width}x{height}", f"crop it, or ask for {fit}")
