"""Which sizes a sampler can generate with a model, and the nearest ones to a size that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uhr.base.errors import UserError
from uhr.models.ops.sizes import Size, check_enlarges, smallest


@dataclass(frozen=True)
class SizeRule:
    """Sizes are (height, width) in px.

    unit:  both sides are multiples of unit(size) at about that size
    above: only sizes with more px than a square of this side; None is any
    least: the longer side is at least this; None is any
    """

    unit: Callable[[Size], int]
    above: int | None = None
    least: int | None = None

    @classmethod
    def multiples(cls, unit: int, above: int | None = None, least: int | None = None) -> SizeRule:
        """Sides that are multiples of one number at every size."""
        return cls(lambda size: unit, above, least)

    def enough(self, size: Size) -> bool:
        """Whether an image of this size is large enough."""
        large = self.above is None or size[0] * size[1] > self.above**2
        return large and (self.least is None or max(size) >= self.least)

    def smallest(self, size: Size) -> Size:
        """The smallest size that can be generated with sides no shorter than these: neither side can be a
        unit shorter. Where it is not large enough, both sides grow."""
        return smallest(size, self.unit, self.enough)

    def check(self, size: Size, possible: Callable[[Size], bool]) -> None:
        """UserError, with the nearest sizes, for one that cannot be generated.

        `possible` says whether nothing but the rule forbids a size: only such are named.
        """
        height, width = size
        unit = self.unit(size)
        if min(size) <= 0 or height % unit or width % unit:
            fix = f"multiples of {unit}; nearest {self.nearest(size, possible)}"
            raise UserError(f"size {width}x{height} cannot be made", fix)
        if self.above is not None and not self.enough(size):
            check_enlarges(size, self.above, self.nearest(size, possible))

    def nearest(self, size: Size, possible: Callable[[Size], bool]) -> str:
        """The largest size with no side longer, if there is one, and the smallest with none shorter, for
        people: width first."""
        unit = self.unit(size)
        low = size[0] // unit * unit, size[1] // unit * unit
        high = self.smallest((max(size[0], 1), max(size[1], 1)))
        fits = min(low) > 0 and self.unit(low) == unit and self.enough(low)
        sizes = [low, high] if fits else [high]
        # where none is possible for another reason, that reason is the next error
        able = [each for each in sizes if possible(each)] or sizes
        return " or ".join(f"{width}x{height}" for height, width in able)
