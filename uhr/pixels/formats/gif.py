"""GIF (CompuServe GIF89a): its header and its end, block by block, and the pixels of its first frame.

Compiled by numba when the first GIF is decoded. Pillow says neither that a frame has more pixels than its
size, nor what of the screen a frame leaves.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from uhr.pixels.compiled import compiled
from uhr.pixels.planes import Planes
from uhr.pixels.types import FileBytes, Header, PixelFault

_MOST_BLOCKS = 10_000_000
"""Blocks after which a walk stops: 2.5 GB of them."""

_EXTENSION, _IMAGE, _TRAILER, _CONTROL = b"\x21", b"\x2c", b"\x3b", b"\xf9"


class _Frame(NamedTuple):
    """The first frame: its place on the screen in pixels, whether its rows are interlaced, the place (offset,
    bytes) of its colours, the offset of its codes, and the index of its transparent colour, None without.
    """

    x: int
    y: int
    width: int
    height: int
    interlaced: bool
    colours: tuple[int, int]
    codes: int
    transparent: int | None


def header(source: FileBytes) -> Header:
    """Read the header. Raises `PixelFault` if there is no frame. Whether there is a second one is not looked
    up: that would take a walk through the first.
    """
    screen, frame = _start(source)
    width, height = max(screen[0], frame.x + frame.width), max(screen[1], frame.y + frame.height)
    has_alpha = frame.transparent is not None or (frame.width, frame.height) != (width, height)
    return Header("GIF", width, height, "P", 8, has_alpha=has_alpha)


def planes(data: bytes, header: Header) -> Planes:
    """Read the first frame; the rest of the screen is transparent.

    Raises `PixelFault` for a file that is cut or damaged.
    """
    source = FileBytes(data, len(data))
    _, frame = _start(source)
    if _ends_early(source, frame):
        raise PixelFault("truncated", "the GIF ends before its trailer")
    place, count = frame.colours
    if not count:
        raise PixelFault("unsupported", "a GIF without a colour table")
    colours = np.frombuffer(data, np.uint8, count, place).reshape(-1, 3)[:, ::-1]
    indices = _indices(data, frame)
    if indices.max() >= len(colours):
        raise PixelFault(
            "corrupt", f"the GIF has an index {indices.max()} in a table of {len(colours)} colours"
        )
    size = (header.raw_height, header.raw_width)
    bgr, alpha = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    shown = np.s_[frame.y : frame.y + frame.height, frame.x : frame.x + frame.width]
    bgr[shown] = colours[indices]
    alpha[shown] = 255 if frame.transparent is None else np.where(indices == frame.transparent, 0, 255)
    return Planes(bgr, alpha if header.has_alpha else None)


def _indices(data: bytes, frame: _Frame) -> np.ndarray:
    """Read the first frame: uint8 [height, width], rows from the top."""
    bits = data[frame.codes]
    if not 1 <= bits <= 11:
        raise PixelFault("corrupt", f"the GIF has codes of {bits} bits")
    parts, position = [], frame.codes + 1
    while data[position]:
        parts.append(data[position + 1 : position + 1 + data[position]])
        position += 1 + data[position]
    found = np.zeros(frame.width * frame.height, np.uint8)
    most = len(found) + frame.width
    count = _decoder()(np.frombuffer(b"".join(parts), np.uint8), bits, found, most)
    if count < len(found):
        raise PixelFault(
            "corrupt", f"the GIF has {max(count, 0)} of the {len(found)} pixels of its first frame"
        )
    if count >= most:
        raise PixelFault(
            "corrupt", f"the GIF has more than the {frame.width} x {frame.height} pixels of its frame"
        )
    rows = found.reshape(frame.height, frame.width)
    if not frame.interlaced:
        return rows
    # every eighth row, those between them, and so on
    order = [y for start, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(start, frame.height, step)]
    upright = np.empty_like(rows)
    upright[order] = rows
    return upright


@functools.cache
def _decoder() -> Callable[[np.ndarray, int, np.ndarray, int], int]:
    return compiled(_decode)


def _decode(data: np.ndarray, bits: int, found: np.ndarray, most: int) -> int:
    """Fill uint8 `found` [N] from LZW codes that begin with `bits` + 1 bits; return the number of pixels.

    It may be more than N; -1 is for a code that no table has. Stops at `most` pixels: a few bytes can make
    pixels for hours.
    """
    clear, entries = 1 << bits, 4096
    prefix, last = np.zeros(entries, np.int32), np.zeros(entries, np.uint8)
    length = np.ones(entries, np.int32)
    for value in range(clear):
        last[value] = value & 255
    width, free, previous, count = bits + 1, clear + 2, -1, 0
    window, available, position = 0, 0, 0
    while count < most:
        while available < width:
            if position >= len(data):
                return count
            window |= int(data[position]) << available
            available += 8
            position += 1
        code = window & ((1 << width) - 1)
        window >>= width
        available -= width
        if code == clear:
            width, free, previous = bits + 1, clear + 2, -1
            continue
        if code == clear + 1:
            return count
        if code > free or (code == free and previous < 0) or (code >= clear and previous < 0):
            return -1
        # the code of the entry that is made now: the previous string and its own first value
        known = code if code < free else previous
        many = length[known]
        first, at = known, count + many - 1
        while True:
            if at < len(found):
                found[at] = last[first]
            at -= 1
            if length[first] == 1:
                break
            first = prefix[first]
        count += many
        if code == free:
            if count < len(found):
                found[count] = last[first]
            count += 1
        if previous >= 0 and free < entries:
            prefix[free], last[free], length[free] = previous, last[first], length[previous] + 1
            free += 1
            if free == 1 << width and width < 12:
                width += 1
        previous = code
    return count


def _start(source: FileBytes) -> tuple[tuple[int, int], _Frame]:
    """Read the size of the screen, and the first frame."""
    head = source.at(0, 13)
    if len(head) < 13:
        raise PixelFault("truncated", "the GIF ends in its header")
    screen = struct.unpack_from("<HH", head, 6)
    position, colours = 13 + _colour_table(head[10]), (13, _colour_table(head[10]))
    transparent: int | None = None
    for _ in range(_MOST_BLOCKS):
        kind = source.at(position, 1)
        if kind == _EXTENSION:
            block = source.at(position + 1, 6)
            if block[:1] == _CONTROL and len(block) == 6:
                transparent = block[5] if block[2] & 1 else None
            position = _behind_sub_blocks(source, position + 2)
        elif kind == _IMAGE:
            fields = source.at(position, 10)
            if len(fields) < 10:
                break
            x, y, width, height, packed = struct.unpack_from("<HHHHB", fields, 1)
            if not width or not height:
                raise PixelFault("corrupt", f"the GIF has a first frame of {width} x {height} pixels")
            own = _colour_table(packed)
            colours = (position + 10, own) if own else colours
            interlaced = bool(packed & 0x40)
            frame = _Frame(x, y, width, height, interlaced, colours, position + 10 + own, transparent)
            return (screen[0], screen[1]), frame
        elif kind == _TRAILER:
            raise PixelFault("corrupt", "the GIF has no frame")
        elif not kind:
            break
        else:
            # stray bytes between blocks are skipped, as Pillow does
            position += 1
    raise PixelFault("truncated", "the GIF ends before its first frame")


def _ends_early(source: FileBytes, frame: _Frame) -> bool:
    """Whether a file ends before its trailer. Stray bytes after the first frame end the walk."""
    # the size of its codes, and the codes
    position = _behind_sub_blocks(source, frame.codes + 1)
    for _ in range(_MOST_BLOCKS):
        kind = source.at(position, 1)
        if kind == _EXTENSION:
            position = _behind_sub_blocks(source, position + 2)
        elif kind == _IMAGE:
            fields = source.at(position, 10)
            if len(fields) < 10:
                return True
            position = _behind_sub_blocks(source, position + 11 + _colour_table(fields[9]))
        else:
            return not kind
    return False


def several_frames(data: bytes) -> bool:
    """Whether the bytes of a whole GIF have a second frame."""
    source = FileBytes(data, len(data))
    _, frame = _start(source)
    position = _behind_sub_blocks(source, frame.codes + 1)
    while source.at(position, 1) == _EXTENSION:
        position = _behind_sub_blocks(source, position + 2)
    return source.at(position, 1) == _IMAGE


def _colour_table(packed: int) -> int:
    """Bytes of the table that a packed field announces."""
    return 3 << (packed & 7) + 1 if packed & 0x80 else 0


def _behind_sub_blocks(source: FileBytes, position: int) -> int:
    """Return the offset after a chain of sub-blocks; beyond the end of the file if it is truncated."""
    while True:
        length = source.at(position, 1)
        if not length:
            return source.size + 1
        position += 1 + length[0]
        if length == b"\0":
            return position
