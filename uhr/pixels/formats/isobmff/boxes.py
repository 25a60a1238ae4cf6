"""Boxes of ISO base media files (ISO/IEC 14496-12): the container of AVIF, HEIF, JPEG 2000 and MP4."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from uhr.pixels.types import FileBytes, PixelFault

MOST_BOXES = 10_000
"""Boxes at one level after which a walk stops: a file of tiny boxes must not block a worker."""

MOST_BYTES = 1 << 24
"""The largest box that is read whole (16 MiB): directories, profiles, never pixels."""


class IsoBox(NamedTuple):
    """A box. `start` and `end` are the offsets of its content; `end` may be past the end of a truncated
    file."""

    kind: bytes
    start: int
    end: int


def walk(source: FileBytes, start: int = 0, end: int | None = None) -> Iterator[IsoBox]:
    """Yield the boxes from `start` to `end` (None: of the file), in order. One that claims to reach past
    `end` is the last. Raises `PixelFault("corrupt")` for a length that is shorter than its own header.
    """
    limit = source.size if end is None else end
    for _ in range(MOST_BOXES):
        head = source.at(start, 16)
        if start + 8 > limit or len(head) < 8:
            return
        length, kind, content = int.from_bytes(head[:4], "big"), head[4:8], start + 8
        if length == 1:
            length, content = int.from_bytes(head[8:16], "big"), start + 16
        elif length == 0:
            length = limit - start
        if start + length < content:
            raise PixelFault("corrupt", f"a box {kind!r} of {length} bytes is shorter than its own header")
        yield IsoBox(kind, content, start + length)
        start += length
    raise PixelFault("corrupt", f"more than {MOST_BOXES} boxes at one level")


def content(source: FileBytes, box: IsoBox) -> bytes:
    """Read the whole content of a box. Raises `PixelFault` if it is too large or truncated."""
    count = box.end - box.start
    if count > MOST_BYTES:
        raise PixelFault("corrupt", f"a box {box.kind!r} of {count} bytes where a small one belongs")
    data = source.at(box.start, count)
    if len(data) < count:
        raise PixelFault("truncated", f"the file ends in its box {box.kind!r}")
    return data


def children(data: bytes, skip: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of the boxes in a box's content, after `skip` bytes of its own fields."""
    source = FileBytes(data, len(data))
    for box in walk(source, skip):
        if box.end > len(data):
            raise PixelFault("corrupt", f"a box {box.kind!r} is longer than the box around it")
        yield box.kind, data[box.start : box.end]


def brands(data: bytes) -> list[bytes]:
    """Return the brands of an `ftyp` box's content: the major one, then the compatible ones."""
    return [data[:4], *(data[at : at + 4] for at in range(8, len(data) - 3, 4))]


def ends_early(source: FileBytes) -> bool:
    """Whether the last box is truncated; stray bytes after the boxes, without letters as kind, are not a
    box."""
    return any(box.end > source.size and _in_letters(box.kind) for box in walk(source))


def _in_letters(kind: bytes) -> bool:
    return kind.isascii() and kind.strip(b" ").isalnum()
