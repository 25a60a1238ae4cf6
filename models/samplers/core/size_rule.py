"""The sizes that a sampler can generate with a model, and for another size the nearest ones that it can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uhr.base.errors import UserError
from uhr.models.ops.sizes import Size, check_enlarges, smallest


@dataclass(frozen=True)
class SizeRule:
    """The sizes (height, width) in px that can be generated.

    unit:  both sides are multiples of unit(size)
    above: only sizes with more px than a square of this side; None is any
    least: the longer side is at least this; None is any
    """

    unit: Callable[[Size], int]
    above: int | None = None
    least: int | None = None

    @classmethod
    def multiples(cls, unit: int, above: int | None = None, least: int | None = None) -> SizeRule:
        """Return the rule that sides are multiples of `unit` px, at every size."""
        return cls(lambda size: unit, above, least)

    def enough(self, size: Size) -> bool:
        """Whether an image of this size is large enough."""
        large = self.above is None or size[0] * size[1] > self.above**2
        return large and (self.least is None or max(size) >= self.least)

    def whole_units(self, size: Size) -> Size:
        """Return the smallest size of whole units whose sides are at least these, whatever its area."""
        return smallest(size, self.unit, lambda _: True)

    def smallest(self, size: Size) -> Size:
        """Return the smallest size that can be generated and whose sides are at least these. If that size has
        too few px, both sides grow."""
        return smallest(size, self.unit, self.enough)

    def check(self, size: Size, possible: Callable[[Size], bool]) -> None:
        """Raise UserError, with the nearest sizes, for a size that cannot be generated.

        `possible` returns whether a size is valid apart from this rule; only such sizes are named.
        """
        height, width = size
        unit = self.unit(size)
        if min(size) <= 0 or height % unit or width % unit:
            fix = f"use multiples of {unit}; nearest {self.nearest(size, possible)}"
            raise UserError(f"size {width}x{height} cannot be generated", fix)
        if self.above is not None and not self.enough(size):
            check_enlarges(size, self.above, self.nearest(size, possible))

    def nearest(self, size: Size, possible: Callable[[Size], bool]) -> str:
        """Return two sizes as text, width first: the largest with both sides at most these, if there is one,
        and the smallest with both sides at least these."""
        unit = self.unit(size)
        low = size[0] // unit * unit, size[1] // unit * unit
        high = self.smallest((max(size[0], 1), max(size[1], 1)))
        fits = min(low) > 0 and self.unit(low) == unit and self.enough(low)
        sizes = [low, high] if fits else [high]
        # if none is possible for another reason, that reason is the user's next error
        able = [each for each in sizes if possible(each)] or sizes
        return " or ".join(f"{width}x{height}" for height, width in able)
