"""Pad an image of any size to one that a sampler can generate, and cut the result: without stretching or
loss.

All sizes are (height, width) in px. Padding is on the right and at the bottom, by reflection of the image.
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
"""Returns the smallest size that a sampler can generate with sides of at least (height, width)."""

MOST_PADDING = 1.125
"""Padding the image by whole pixels may enlarge the generated area by at most this factor."""

MOST_PIXELS = 2**30
"""The largest result: 32768 x 32768. More is a typing error, and a PNG that no program opens."""


def target_size(given: Size, scale: float | None, size: Size | None, default: float) -> Size:
    """Return the size that an image of size `given` is enlarged to: `size`, or `scale` times its sides, each
    rounded. `default` is the scale if neither is given.

    Raises UserError if the aspect ratio of `size` differs by more than half a pixel of the image, if a side
    would shrink, and for more than `MOST_PIXELS`.
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
            raise UserError(f"a scale of {scale:g} is invalid", "give 1 or more")
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
        fix = f"use {width}x{fits[0]} or {fits[1]}x{height}, or crop it"
        raise UserError(f"an image of {_times(given)} does not fit {_times(size)}", fix)


def check_patch(given: Size, target: Size, patch: int, whole: bool) -> None:
    """Raise UserError, with the scale to use, if the target is smaller than one patch: if `whole`, by having
    fewer px than a square of that side, else if both sides are shorter."""

    def large_enough(size: Size) -> bool:
        return size[0] * size[1] >= patch**2 if whole else max(size) >= patch

    if large_enough(target):
        return
    side = math.sqrt(given[0] * given[1]) if whole else max(given)
    hundredths = math.ceil(100 * patch / side)
    # a side of 1.4 px is rounded to one
    while not large_enough(target_size(given, hundredths / 100, None, 1)):
        hundredths += 1
    what = f"an image of {_times(given)} becomes {_times(target)}, less than one patch of {patch}x{patch}"
    raise UserError(what, f"take a scale of {hundredths / 100:g} or more")


@dataclass(frozen=True)
class Fit:
    """The padding with which a sampler generates exactly `target` px from an image of `given` px.

    The sampler gets the image padded to `padded` px and generates `made` px, where `made / padded` is the
    exact enlargement `target / given` along each axis; the upper left `target` px are kept. If no padding by
    whole pixels gives a size that it can generate, the image is enlarged to `target` before
    (`enlarged_first`), and `padded` equals `made`.
    """

    given: Size
    target: Size
    padded: Size
    made: Size

    @property
    def enlarged_first(self) -> bool:
        """Whether the image is enlarged before it is padded."""
        return self.padded == self.made and self.given != self.target

    def pad(self, image: torch.Tensor) -> torch.Tensor:
        """Pad an image [B, 3, h, w] for the sampler: float32 [B, 3, *padded]. Overshoots of the enlargement
        are not clipped."""
        assert tuple(image.shape[-2:]) == self.given, (tuple(image.shape), self.given)
        if self.enlarged_first:
            image = bicubic(image.float(), *self.target)
        return continued(image.float(), self.padded)

    def cut(self, generated: Any) -> Any:
        """Cut a PIL image of `made` px to `target` px, or the preview of an earlier stage to the same
        part."""
        sides = zip(self.target, generated.size[::-1], self.made, strict=True)
        height, width = (max(1, round(side * of / made)) for side, of, made in sides)
        return generated if (width, height) == generated.size else generated.crop((0, 0, width, height))

    def describe(self) -> dict[str, Any]:
        """Return JSON for the image's record: sizes as [height, width]."""
        sizes = {"given": self.given, "target": self.target, "handed": self.padded, "made": self.made}
        described = {name: list(size) for name, size in sizes.items()}
        return {**described, "enlarged_first": self.enlarged_first}


def fit(given: Size, target: Size, makeable: Makeable) -> Fit:
    """Find the padding with which a sampler generates `target` from an image of `given` px.

    Along an axis that is enlarged by P / q in lowest terms, images of k q px become k P px. The smallest of
    these that the sampler can generate is used, unless its area is more than `MOST_PADDING` times the
    smallest possible one.
    """
    least = makeable(*target)
    units = [Fraction(side, of).numerator for side, of in zip(target, given, strict=True)]
    made = target
    while made[0] * made[1] <= MOST_PADDING * least[0] * least[1]:
        found = makeable(*made)
        if found == made:
            padded = [side * of // to for side, of, to in zip(made, given, target, strict=True)]
            return Fit(given, target, (padded[0], padded[1]), made)
        made = up_to(found[0], units[0]), up_to(found[1], units[1])
    return Fit(given, target, least, least)


def continued(image: torch.Tensor, size: Size) -> torch.Tensor:
    """Pad an image [B, C, h, w] to `size` by reflection, repeatedly if needed; its last row and column are
    not repeated. An image of that size is returned as it is."""
    if tuple(image.shape[-2:]) == size:
        return image
    rows, columns = (reflected(of, to) for of, to in zip(image.shape[-2:], size, strict=True))
    image = image.index_select(-2, rows.to(image.device))
    return image.index_select(-1, columns.to(image.device))


def _times(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
