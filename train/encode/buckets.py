"""Pixel buckets: the sizes that images are cropped to, all of about the same area. Integers throughout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from uhr.base.errors import UserError, unknown


class Bucket(NamedTuple):
    """A size in px, (height, width) in this order."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class CropPlacement(NamedTuple):
    """How an image is fitted to its bucket: resized to `height` x `width` px, then cropped at (top, left).

    The resized image covers the bucket and equals it along one side; the crop is centred.
    """

    height: int
    width: int
    top: int
    left: int


def buckets(resolution: int, aspects: Sequence[str], multiple: int) -> tuple[Bucket, ...]:
    """Make one bucket per aspect ratio `width/height` and per transpose, of about resolution^2 px each.

    Sides are the multiples of `multiple` nearest to resolution * sqrt(width / height) and its inverse,
    computed in integers. Equal buckets are merged; the order is by width.
    """
    if resolution % multiple or resolution < 1:
        raise UserError(f"resolution {resolution}", f"it must be a multiple of {multiple} px for this model")
    found = set()
    for text in aspects:
        across, down = parse_aspect(text)
        for a, b in ((across, down), (down, across)):
            found.add(Bucket(_side(resolution, b, a, multiple), _side(resolution, a, b, multiple)))
    return tuple(sorted(found, key=lambda bucket: (bucket.width, bucket.height)))


SQUARE = "square"
ASPECTS = "aspects"

TABLES: Mapping[str, tuple[str, ...]] = {
    "ultraflux-4k": (
        "5440x3072", "5184x3264", "4992x3328", "4736x3520", "5824x2880", "6272x2688", "5568x3008",
        "6336x2624", "5632x3008", "4608x3648", "3072x5440", "3648x4608", "3520x4736", "3328x4992",
        "4096x4096",
    ),
}  # fmt: skip
"""Published tables of sizes, WIDTHxHEIGHT. "ultraflux-4k" is Table 9 of UltraFlux (2511.18050), whose text
names five other sizes; it has no portrait form of six of its landscape sizes."""


def bucket_table(
    table: str | Sequence[str], resolution: int, aspects: Sequence[str], multiple: int
) -> tuple[Bucket, ...]:
    """The buckets of a configuration, by width.

    Args:
        table: "aspects", "square", the name of one of `TABLES`, or sizes as WIDTHxHEIGHT.
        resolution, aspects: the area and the ratios of the buckets, for "aspects" and "square".
        multiple: of which every side must be a multiple, px.

    Raises UserError for an unknown table, and for a size that is not a multiple.
    """
    if table == ASPECTS:
        return buckets(resolution, aspects, multiple)
    if table == SQUARE:
        return buckets(resolution, ("1/1",), multiple)
    if isinstance(table, str) and table not in TABLES:
        raise unknown("bucket table", table, (ASPECTS, SQUARE, *TABLES), "--set buckets=")
    texts = TABLES[table] if isinstance(table, str) else table
    sizes = {parse_size(text) for text in texts}
    for size in sorted(sizes):
        if size.height % multiple or size.width % multiple:
            raise UserError(f"bucket {size}", f"its sides must be multiples of {multiple} px for this model")
    return tuple(sorted(sizes, key=lambda bucket: (bucket.width, bucket.height)))


def table_side(table: str | Sequence[str]) -> int | None:
    """The resolution in px of a table of sizes: the side of its largest square, or else of the
    square (rounded down) with the area of its largest size. None if the table depends on a resolution.
    """
    if table in (ASPECTS, SQUARE) or (isinstance(table, str) and table not in TABLES):
        return None
    sizes = [parse_size(text) for text in (TABLES[table] if isinstance(table, str) else table)]
    squares = [size.width for size in sizes if size.width == size.height]
    return max(squares) if squares else math.isqrt(max(size.height * size.width for size in sizes))


def parse_size(text: str) -> Bucket:
    """Parse `5440x3072` as a bucket, width before height. Raises ValueError if it is not a size."""
    across, found, down = text.partition("x")
    if not (found and across.isdigit() and down.isdigit() and int(across) and int(down)):
        raise ValueError(f"'{text}' is not a size: write it as WIDTHxHEIGHT, such as 5440x3072")
    return Bucket(int(down), int(across))


def parse_aspect(text: str) -> tuple[int, int]:
    """Parse `3/2` as (3, 2), width before height. (YAML reads 3:2 as a time of day.)"""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"aspect ratio '{text}'", "write it as width/height, such as 3/2")
    across, down = int(parts[0]), int(parts[1])
    if max(across, down) > 4 * min(across, down):
        raise UserError(
            f"aspect ratio '{text}' is beyond 4/1", "panoramas are patches: crop them in curation"
        )
    return across, down


def _side(resolution: int, this: int, other: int, multiple: int) -> int:
    """The multiple nearest to resolution * sqrt(this / other): round(sqrt(q)) = (isqrt(4 q) + 1) // 2."""
    quadruple = 4 * resolution * resolution * this // (other * multiple * multiple)
    return max(1, (math.isqrt(quadruple) + 1) // 2) * multiple


def choose(height: int, width: int, among: Sequence[Bucket]) -> Bucket:
    """The bucket whose aspect ratio is nearest to the aspect ratio of an image of height x width px.

    The distance is |log(width / height) - log(bucket's)|, compared as exact fractions. Of two buckets at the
    same distance, the first is chosen.
    """

    def ratio(bucket: Bucket) -> Fraction:
        one, two = width * bucket.height, height * bucket.width
        return Fraction(max(one, two), min(one, two))

    return min(among, key=ratio)


def fits(height: int, width: int, bucket: Bucket) -> bool:
    """Whether an image of height x width px covers the bucket without being enlarged."""
    return height >= bucket.height and width >= bucket.width


def place(height: int, width: int, bucket: Bucket) -> CropPlacement:
    """Return the placement in which the image just covers the bucket, cropped to its centre."""
    if width * bucket.height >= height * bucket.width:
        new_height = bucket.height
        new_width = max(bucket.width, (2 * width * bucket.height + height) // (2 * height))
    else:
        new_width = bucket.width
        new_height = max(bucket.height, (2 * height * bucket.width + width) // (2 * width))
    return CropPlacement(
        new_height, new_width, (new_height - bucket.height) // 2, (new_width - bucket.width) // 2
    )
