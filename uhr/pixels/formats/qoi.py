"""QOI (qoiformat.org, version 1.0): header, and a decoder that checks where the pixels end.

Compiled by numba when the first QOI is decoded: one after the other in Python, the pixels of a 4K image take
half a minute.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable

import numpy as np

from uhr.pixels.compiled import compiled
from uhr.pixels.planes import Planes
from uhr.pixels.types import FileBytes, Header, PixelFault

_HEADER, _END = 14, bytes(7) + b"\1"

LINEAR = "the QOI header names linear light, taken as sRGB"
"""The specification calls that byte purely informative, and Pillow sets it in every QOI that it writes: if it
were believed, most files would come out far too bright.
"""


def header(source: FileBytes) -> Header:
    """Read the header. Raises `PixelFault` for one that is truncated or damaged."""
    head = source.at(0, _HEADER)
    if len(head) < _HEADER:
        raise PixelFault("truncated", "the QOI ends in its header")
    width, height, channels, light = struct.unpack_from(">IIBB", head, 4)
    if channels not in (3, 4) or light not in (0, 1):
        raise PixelFault("corrupt", f"the QOI header names {channels} channels and colour space {light}")
    mode = "RGBA" if channels == 4 else "RGB"
    notes = (LINEAR,) if light else ()
    return Header("QOI", width, height, mode, 8, has_alpha=channels == 4, notes=notes)


def planes(data: bytes, header: Header) -> Planes:
    """Read the pixels. Raises `PixelFault` for a file that ends before them, or has more of them than its
    size."""
    count = header.raw_width * header.raw_height
    end = len(data) - len(_END) if data.endswith(_END) else len(data)
    # a byte codes 62 pixels at most: no array is made for a size that the file cannot have
    if count > 62 * max(end - _HEADER, 0):
        raise PixelFault("truncated", f"the QOI has {end - _HEADER} bytes for {count} pixels")
    pixels = np.empty((count, 4), np.uint8)
    found, position = _decoder()(np.frombuffer(data, np.uint8, end), _HEADER, pixels)
    if found < count or end == len(data):
        raise PixelFault("truncated", f"the QOI ends after {found} of {count} pixels")
    if position != end:
        raise PixelFault(
            "corrupt", f"the QOI has {end - position} bytes behind the last of its {count} pixels"
        )
    grid = pixels.reshape(header.raw_height, header.raw_width, 4)
    alpha = np.ascontiguousarray(grid[..., 3]) if header.has_alpha else None
    return Planes(np.ascontiguousarray(grid[..., 2::-1]), alpha)


@functools.cache
def _decoder() -> Callable[[np.ndarray, int, np.ndarray], tuple[int, int]]:
    return compiled(_decode)


def _decode(data: np.ndarray, position: int, pixels: np.ndarray) -> tuple[int, int]:
    """Fill uint8 `pixels` [N, 4] from the bytes at `position`; how many were found, and the offset behind
    them.
    """
    seen = np.zeros((64, 4), np.uint8)
    r, g, b, a = 0, 0, 0, 255
    run, end = 0, len(data)
    for index in range(len(pixels)):
        if run > 0:
            run -= 1
        else:
            if position >= end:
                return index, position
            tag = data[position]
            kind = tag >> 6
            length = 4 if tag == 0xFE else 5 if tag == 0xFF else 2 if kind == 2 else 1
            if position + length > end:
                return index, position
            if tag >= 0xFE:
                r, g, b = int(data[position + 1]), int(data[position + 2]), int(data[position + 3])
                if tag == 0xFF:
                    a = int(data[position + 4])
            elif kind == 0:
                r, g, b, a = int(seen[tag, 0]), int(seen[tag, 1]), int(seen[tag, 2]), int(seen[tag, 3])
            elif kind == 1:
                r = (r + (tag >> 4 & 3) - 2) & 255
                g = (g + (tag >> 2 & 3) - 2) & 255
                b = (b + (tag & 3) - 2) & 255
            elif kind == 2:
                green = (tag & 63) - 32
                second = data[position + 1]
                r = (r + green - 8 + (second >> 4)) & 255
                g = (g + green) & 255
                b = (b + green - 8 + (second & 15)) & 255
            else:
                run = tag & 63
            position += length
            place = (r * 3 + g * 5 + b * 7 + a * 11) % 64
            seen[place, 0], seen[place, 1], seen[place, 2], seen[place, 3] = r, g, b, a
        pixels[index, 0], pixels[index, 1], pixels[index, 2], pixels[index, 3] = r, g, b, a
    # a run that is longer than the image is a pixel too many
    return len(pixels), position + (1 if run > 0 else 0)
