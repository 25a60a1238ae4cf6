"""Windows icons: choose an image of the file, and read its pixels. A PNG in one is decoded as a PNG."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np

from uhr.pixels.formats import bmp, header_walks
from uhr.pixels.planes import Planes
from uhr.pixels.types import FileBytes, Header, PixelFault

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 1 << 26


def largest(source: FileBytes) -> bytes:
    """Return the bytes of the largest image, of several the deepest one: a PNG, or a bitmap without a file
    header.

    Raises `PixelFault("truncated")` where the file ends before one of its images does.
    """
    count = int.from_bytes(source.at(4, 2), "little")
    table = source.at(6, 16 * count)
    # a file of four bytes has no count
    if not table or len(table) < 16 * count:
        raise PixelFault("truncated", f"the ICO ends in its list of {count} images")
    entries = []
    for index in range(count):
        width, height, _, _, _, bits, size, offset = struct.unpack_from("<BBBBHHII", table, 16 * index)
        if offset + size > source.size:
            raise PixelFault("truncated", f"the ICO ends before its image {index}")
        entries.append(((width or 256) * (height or 256), bits, -index, offset, size))
    *_, offset, size = max(entries)
    if not 40 <= size <= _MOST_BYTES:
        raise PixelFault("corrupt", f"the ICO names an image of {size} bytes")
    return source.at(offset, size)


def is_png(data: bytes) -> bool:
    """Whether the largest image of a whole file is a PNG."""
    return largest(FileBytes(data, len(data))).startswith(_PNG)


def header(source: FileBytes) -> Header:
    """Read the header of the largest image."""
    image = largest(source)
    if image.startswith(_PNG):
        return replace(header_walks.png(FileBytes(image, len(image))), format="ICO", orientation=1)
    dib = bmp.dib_header(FileBytes(image, len(image)), 0)
    if dib.height % 2:
        raise PixelFault("corrupt", f"the ICO has a bitmap of {dib.height} rows, which are no image and mask")
    why = bmp.unsupported(dib)
    return Header("ICO", dib.width, dib.height // 2, "RGBA", bmp.depth(dib), has_alpha=True, unsupported=why)


def planes(data: bytes, header: Header) -> Planes:
    """Read the pixels of a bitmap in an icon: colours, and after them a mask of one bit, 1 for transparent.
    With 32 bits a pixel the fourth byte is opacity, unless it is zero everywhere.
    """
    image = largest(FileBytes(data, len(data)))
    dib = bmp.dib_header(FileBytes(image, len(image)), 0)
    dib = dib._replace(height=dib.height // 2)
    if dib.bits == 32 and not dib.masks[3]:
        dib = dib._replace(masks=(*dib.masks[:3], 0xFF000000))
    planes = bmp.dib_planes(image, dib, dib.pixels)
    if planes.alpha is not None and planes.alpha.any():
        return planes
    mask = dib._replace(bits=1)
    start = dib.pixels + dib.row * dib.height
    rows = np.frombuffer(image[start : start + mask.row * dib.height], np.uint8)
    if len(rows) < mask.row * dib.height:
        raise PixelFault("truncated", "the ICO ends in the mask of its image")
    bits = np.unpackbits(rows.reshape(dib.height, mask.row), axis=1, count=dib.width)
    planes.alpha = np.ascontiguousarray(255 * (1 - bits if dib.top_down else 1 - bits[::-1])).astype(np.uint8)
    return planes
