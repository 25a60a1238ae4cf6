"""From an image of any size to one that a sampler can make, and back: nothing is stretched, nothing lost.

All sizes are (height, width) in px. What lies beyond the right and lower border is the image, reflected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.ops.enlarge import reflected
from uhr.models.ops.filters import bicubic
from uhr.models.ops.sizes import Size, up_to

Makeable = Callable[[int, int], Size]
"""The smallest size that a sampler can make with sides of at least (height, width)."""

SPARE = 1.125
"""Padding the image by whole pixels may make the sampler paint this many times the least area."""

MOST_PIXELS = 2**30
"""Of what is asked for: 32768 x 32768. More is a slip of the hand, and no PNG that anything opens."""


def target_size(given: Size, scale: float | None, size: Size | None, default: float) -> Size:
    """What an image of `given` becomes: `scale` times its sides, each rounded, or `size`; `default` is the
    scale where neither is told.

    A size must have the image's aspect ratio but for half a pixel of the image. UserError for that, for
    sides that would shrink, and for more than `MOST_PIXELS`.
    """
    (tall, wide), shown = given, _times(given)
    if scale is not None and size is not None:
        raise UserError("both a scale and a size are given", "give one of them")
    if size is not None:
        _check_unstretched(given, size)
        found = size
    else:
        scale = default if scale is None else scale
        if not 0 < scale < math.inf:
            raise UserError(f"a scale of {scale:g}", "give 1 or more")
        found = round(scale * tall), round(scale * wide)
    if found[0] < tall or found[1] < wide:
        what = f"an image of {shown} would shrink to {_times(found)}"
        raise UserError(what, "shrink it before, and take scale 1")
    if found[0] * found[1] > MOST_PIXELS:
        most = math.sqrt(MOST_PIXELS / (tall * wide))
        fix = f"take a scale of at most {math.floor(100 * most) / 100:g}"
        raise UserError(f"an image of {shown} would become {_times(found)}", fix)
    return found


def _check_unstretched(given: Size, size: Size) -> None:
    (tall, wide), (height, width) = given, size
    fits = round(width * tall / wide), round(height * wide / tall)
    slack = max(1.0, 0.5 * height / tall, 0.5 * width / wide)
    if abs(height - width * tall / wide) > slack and abs(width - height * wide / tall) > slack:
        fix = f"ask for {width}x{fits[0]} or {fits[1]}x{height}, or crop it"
        raise UserError(f"an image of {_times(given)} does not fit {_times(size)}", fix)


def check_patch(given: Size, target: Size, patch: int, whole: bool) -> None:
    """UserError, with the scale to take, for a target of less than one patch: with `whole` of fewer px than a
    square of that side, else shorter along both sides."""

    def holds(size: Size) -> bool:
        return size[0] * size[1] >= patch**2 if whole else max(size) >= patch

    if holds(target):
        return
    side = math.sqrt(given[0] * given[1]) if whole else max(given)
    hundredths = math.ceil(100 * patch / side)
    while not holds(target_size(given, hundredths / 100, None, 1)):  # a side of 1.4 px is rounded to one
        hundredths += 1
    what = f"an image of {_times(given)} becomes {_times(target)}, less than one patch of {patch}x{patch}"
    raise UserError(what, f"take a scale of {hundredths / 100:g} or more")


@dataclass(frozen=True)
class Fit:
    """How a sampler is brought to make `target`, exactly, of an image of `given` px.

    It is handed the image continued to `handed` px and makes `made` px, `made / handed` being the exact
    enlargement `target / given` along each axis; the upper left `target` of it is kept. Where no padding by
    whole pixels leads to a size that it can make, the image is enlarged to `target` beforehand (`first`),
    and `handed` is `made`.
    """

    given: Size
    target: Size
    handed: Size
    made: Size

    @property
    def first(self) -> bool:
        """Whether the image is enlarged before it is padded."""
        return self.handed == self.made and self.given != self.target

    def hand(self, image: torch.Tensor) -> torch.Tensor:
        """What the sampler is handed of an image [B, 3, h, w]: float32 [B, 3, *handed]. Overshoots of the
        enlargement are not clipped."""
        assert tuple(image.shape[-2:]) == self.given, (tuple(image.shape), self.given)
        if self.first:
            image = bicubic(image.float(), *self.target)
        return continued(image.float(), self.handed)

    def cut(self, painted: Any) -> Any:
        """The `target` part of a PIL image of `made` px, or the same part of a stage's before it."""
        sides = zip(self.target, painted.size[::-1], self.made, strict=True)
        height, width = (max(1, round(side * of / made)) for side, of, made in sides)
        return painted if (width, height) == painted.size else painted.crop((0, 0, width, height))

    def describe(self) -> dict[str, Any]:
        """JSON, for the image's record: sizes as [height, width]."""
        sizes = {name: list(getattr(self, name)) for name in ("given", "target", "handed", "made")}
        return {**sizes, "enlarged_first": self.first}


def fit(given: Size, target: Size, makeable: Makeable) -> Fit:
    """The padding with which a sampler makes `target` of an image of `given` px.

    Along an axis that is enlarged by P / q in lowest terms, images of k q px become k P: the least of those
    that the sampler can make is taken, unless its area is more than `SPARE` times what it would make anyway.
    """
    least = makeable(*target)
    units = [Fraction(side, of).numerator for side, of in zip(target, given, strict=True)]
    made = target
    while made[0] * made[1] <= SPARE * least[0] * least[1]:
        found = makeable(*made)
        if found == made:
            handed = [side * of // to for side, of, to in zip(made, given, target, strict=True)]
            return Fit(given, target, (handed[0], handed[1]), made)
        made = up_to(found[0], units[0]), up_to(found[1], units[1])
    return Fit(given, target, least, least)


def continued(image: torch.Tensor, size: Size) -> torch.Tensor:
    """An image [B, C, h, w] continued to `size` by reflection, its last row and column not repeated, to and
    fro as often as it takes; itself where it has that size."""
    if tuple(image.shape[-2:]) == size:
        return image
    rows, columns = (reflected(of, to) for of, to in zip(image.shape[-2:], size, strict=True))
    image = image.index_select(-2, rows.to(image.device))
    return image.index_select(-1, columns.to(image.device))


def _times(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
