"""Sizes of the passes of a cascade: a base at about the backbone's native area, then up to the target.

All sizes are (height, width) in px and multiples of the backbone's pixel multiple; ratios are of sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from uhr.base.errors import UserError

Size = tuple[int, int]

LAST_STRETCH = 0.9
"""A stage that would reach this share of the target's side is left out: the target itself is the stage."""


def base_size(height: int, width: int, native: int, multiple: int) -> Size:
    """The size of the base pass for a target: at most native^2 px, close to that, and close to the target's
    aspect ratio (4096 x 4096 -> 1024 x 1024, 2160 x 3840 -> 768 x 1360). A smaller target is its own base.

    A shortfall in area counts a quarter of an equal error of the aspect ratio: a ratio that is off
    stretches the image when it is enlarged.
    """
    limit = (native // multiple) ** 2
    rows, columns = height // multiple, width // multiple
    if rows * columns <= limit:
        return height, width
    aspect = rows / columns
    best, best_error = (1, 1), math.inf
    for tall in range(1, limit + 1):
        for wide in {math.floor(tall / aspect), math.ceil(tall / aspect)}:
            if wide < 1 or tall * wide > limit:
                continue
            error = abs(math.log(tall / wide / aspect)) + 0.25 * math.log(limit / (tall * wide))
            if error < best_error:
                best, best_error = (tall, wide), error
    return best[0] * multiple, best[1] * multiple


def enlargement(size: Size, base: Size) -> float:
    """How many times the side of `base` that of `size` is: the square root of the areas' ratio."""
    return math.sqrt(size[0] * size[1] / (base[0] * base[1]))


def cascade(target: Size, base: Size, ratios: Sequence[float], multiple: int) -> list[Size]:
    """The sizes after the base, the last of them the target.

    `ratios` are sides over the base's, rising: (2, 4) is 1K-2K-4K, (2, 3, 4) is HiFlow's in its paper. Those
    below the target's are passed through; beyond the list's end the last is doubled, again and again.
    """
    if not ratios or any(b <= a for a, b in zip([1, *ratios], ratios, strict=False)):
        raise UserError(f"a cascade of {list(ratios)}", "give rising ratios above 1: [2, 4], say")
    whole = enlargement(target, base)
    steps = list(ratios)
    while steps[-1] < whole:
        steps.append(2 * steps[-1])
    passed = [ratio / whole for ratio in steps if ratio / whole < LAST_STRETCH]
    return [
        *((_near(share * target[0], multiple), _near(share * target[1], multiple)) for share in passed),
        target,
    ]


def check_sides(multiple: int, height: int, width: int) -> None:
    """UserError with the nearest sizes that can be made, unless both sides are positive multiples."""
    if height > 0 and width > 0 and height % multiple == 0 and width % multiple == 0:
        return
    near = nearest(multiple, height, width)
    raise UserError(f"size {width}x{height} cannot be made", f"multiples of {multiple}; nearest {near}")


def nearest(multiple: int, height: int, width: int) -> str:
    """The sizes below and above whose sides are positive multiples, for people: width first."""
    high = up_to(max(height, 1), multiple), up_to(max(width, 1), multiple)
    low = max(multiple, height // multiple * multiple), max(multiple, width // multiple * multiple)
    return " or ".join(f"{size[1]}x{size[0]}" for size in ([low] if low == high else [low, high]))


def check_enlarges(target: Size, native: int, near: str = "a larger size") -> None:
    """UserError unless the target has more px than the backbone's native square: there would be no stage.
    `near` is what to ask for instead."""
    if target[0] * target[1] <= native**2:
        height, width = target
        what = f"size {width}x{height} is not above the native {native}x{native}, as all images here are"
        raise UserError(what, f"ask for {near}, or take euler")


def whole_times(target: Size, native: int, multiple: int) -> int:
    """How many times the base's side the target's is, for samplers that need a whole number: DemoFusion
    interleaves whole grids. At least 2, and at most as many as the native square has tokens a side."""
    times = round(math.sqrt(target[0] * target[1]) / native)
    return min(max(2, times), native // multiple)


def up_to(side: int, multiple: int) -> int:
    """The smallest multiple that is no smaller than a side."""
    return -(-side // multiple) * multiple


def smallest(asked: Size, unit: Callable[[Size], int], enough: Callable[[Size], bool]) -> Size:
    """A size no smaller than the one asked for whose sides are multiples of `unit(size)` and that is
    `enough`, of which neither side can be a unit shorter.

    What is not enough grows in the shape that was asked for. The unit may rise with the size.
    """

    def taller(size: Size) -> bool:
        """Than the shape that was asked for."""
        return size[0] * asked[1] > size[1] * asked[0]

    def fits(size: Size) -> bool:
        return min(size[0] - asked[0], size[1] - asked[1]) >= 0 and unit(size) == step and enough(size)

    step, found = 0, asked
    while unit(found) != step:
        step = unit(found)
        found = up_to(asked[0], step), up_to(asked[1], step)
        while unit(found) < step or not enough(found):
            found = (found[0], found[1] + step) if taller(found) else (found[0] + step, found[1])
    while True:
        shorter = [(found[0], found[1] - step), (found[0] - step, found[1])]
        left = [size for size in sorted(shorter, key=taller) if fits(size)]
        if not left:
            return found
        found = left[0]


def _near(side: float, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple
