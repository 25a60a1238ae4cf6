"""The sizes of a cascade: a base at about the backbone's native area, then up to the target.

All sizes are (height, width) in px and multiples of the backbone's pixel multiple; ratios are of sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from uhr.base.errors import UserError

Size = tuple[int, int]

LAST_STRETCH = 0.9
"""A stage of at least this share of the target's side is left out, since the target follows anyway."""


def base_size(height: int, width: int, native: int, multiple: int) -> Size:
    """Return the size of the base pass for a target: at most native^2 px, close to that, and close to the
    target's aspect ratio (4096 x 4096 -> 1024 x 1024, 2160 x 3840 -> 768 x 1360). A smaller target is its own
    base.

    A shortfall in area counts a quarter of an equal error in the aspect ratio, because a wrong ratio
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
    """Return the side of `size` over that of `base`: the square root of the ratio of areas."""
    return math.sqrt(size[0] * size[1] / (base[0] * base[1]))


def cascade(target: Size, base: Size, ratios: Sequence[float], multiple: int) -> list[Size]:
    """Return the sizes after the base, the last of which is the target.

    `ratios` are rising sides over the base's: (2, 4) is 1K-2K-4K, (2, 3, 4) is HiFlow's paper. Those below
    the target's ratio are used; if the list ends before it, the last ratio is doubled repeatedly. Raises
    UserError unless the ratios rise above 1.
    """
    if not ratios or any(b <= a for a, b in zip([1, *ratios], ratios, strict=False)):
        raise UserError(
            f"a cascade of {list(ratios)} is invalid", "give rising ratios above 1, such as [2, 4]"
        )
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
    """Raise UserError, with the nearest valid sizes, unless both sides are positive multiples."""
    if height > 0 and width > 0 and height % multiple == 0 and width % multiple == 0:
        return
    near = nearest(multiple, height, width)
    what = f"size {width}x{height} cannot be generated"
    raise UserError(what, f"use multiples of {multiple}; nearest {near}")


def nearest(multiple: int, height: int, width: int) -> str:
    """Return the nearest sizes below and above with sides that are positive multiples, as text, width
    first."""
    high = up_to(max(height, 1), multiple), up_to(max(width, 1), multiple)
    low = max(multiple, height // multiple * multiple), max(multiple, width // multiple * multiple)
    return " or ".join(f"{size[1]}x{size[0]}" for size in ([low] if low == high else [low, high]))


def check_enlarges(target: Size, native: int, near: str = "a larger size") -> None:
    """Raise UserError unless the target has more px than the backbone's native square, since there would be
    no stage. `near` names a size to use instead."""
    if target[0] * target[1] <= native**2:
        height, width = target
        what = f"size {width}x{height} is not above the native {native}x{native}, as this sampler requires"
        raise UserError(what, f"use {near}, or take euler")


def whole_times(target: Size, native: int, multiple: int) -> int:
    """Return the target's side over the base's as a whole number, for samplers that interleave whole grids
    (DemoFusion): at least 2, and at most the native square's tokens per side."""
    times = round(math.sqrt(target[0] * target[1]) / native)
    return min(max(2, times), native // multiple)


def up_to(side: int, multiple: int) -> int:
    """Return the smallest multiple that is not below a side."""
    return -(-side // multiple) * multiple


def smallest(least: Size, unit: Callable[[Size], int], enough: Callable[[Size], bool]) -> Size:
    """Return a size not below `least` whose sides are multiples of `unit(size)` and that is `enough`, and in
    which neither side can be one unit shorter.

    A size that is not enough grows in the aspect ratio of `least`. The unit may rise with the size.
    """

    def taller(size: Size) -> bool:
        """Whether the aspect ratio is above that of `least`."""
        return size[0] * least[1] > size[1] * least[0]

    def fits(size: Size) -> bool:
        return min(size[0] - least[0], size[1] - least[1]) >= 0 and unit(size) == step and enough(size)

    step, found = 0, least
    while unit(found) != step:
        step = unit(found)
        found = up_to(least[0], step), up_to(least[1], step)
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
