"""Assemble the strips and tiles of a TIFF to 8-bit colours and opacity."""

from __future__ import annotations

import numpy as np

from uhr.pixels.formats import pillow_formats
from uhr.pixels.formats.tiff import header as tiff
from uhr.pixels.formats.tiff.directory import Directory, first_directory
from uhr.pixels.formats.tiff.header import TiffLayout
from uhr.pixels.formats.tiff.segments import SegmentReader
from uhr.pixels.planes import Planes
from uhr.pixels.types import FileBytes, Header, PixelFault

_BLOCK = 256
"""Rows per step of the division of colours by opacity."""


def planes(data: bytes, header: Header) -> Planes:
    """Read the first image on its stored grid. Raises `PixelFault` for a truncated or damaged file."""
    directory = first_directory(FileBytes(data, len(data)))
    reading = tiff.read(directory)
    layout = reading.layout
    if layout is None:
        raise PixelFault("unsupported", reading.unsupported)
    stored = _stored(data, directory, layout)
    alpha = None if layout.alpha is None else np.ascontiguousarray(stored[..., layout.alpha])
    if alpha is not None and layout.photometric == tiff.PALETTE:
        alpha = _eight_bits(alpha, layout.bits)
    colours = stored[..., : layout.colours]
    cmyk = None
    if layout.photometric == tiff.PALETTE:
        bgr = _colour_map(directory, layout)[stored[..., 0]]
    elif layout.colours == 1:
        bgr = np.repeat(colours, 3, axis=2)
    elif layout.photometric == tiff.CMYK:
        cmyk = np.ascontiguousarray(colours)
        bgr = pillow_formats.converted(cmyk, "CMYK", "RGB")[..., ::-1]
    elif layout.photometric == tiff.YCBCR and layout.compression != tiff.JPEG:
        bgr = pillow_formats.converted(np.ascontiguousarray(colours), "YCbCr", "RGB")[..., ::-1]
    else:
        bgr = colours[..., ::-1]
    bgr = np.ascontiguousarray(bgr)
    if alpha is not None and layout.associated:
        _divide(bgr, alpha)
    profile = directory.data(34675) if header.has_icc else None
    return Planes(bgr, alpha, cmyk, profile)


def _stored(data: bytes, directory: Directory, layout: TiffLayout) -> np.ndarray:
    """Read uint8 [H, W, samples]: 0..255, or stored indices of a palette."""
    reader = SegmentReader.of(data, directory, layout)
    found = np.empty((layout.height, layout.width, layout.samples), np.uint8)
    for segment, values in reader.read():
        if layout.photometric != tiff.PALETTE:
            values = _eight_bits(values, layout.bits)
        rows = min(segment.rows, layout.height - segment.y)
        columns = min(layout.across, layout.width - segment.x)
        place = found[segment.y : segment.y + rows, segment.x : segment.x + columns]
        if layout.planar:
            place = place[..., segment.sample : segment.sample + 1]
        place[:] = values[:rows, :columns]
    if layout.photometric == tiff.WHITE_IS_ZERO:
        np.subtract(255, found[..., :1], out=found[..., :1])
    return found


def _eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Convert samples to eight bits: the upper eight of more, scaled from fewer."""
    if bits >= 8:
        return values if bits == 8 else np.right_shift(values, bits - 8).astype(np.uint8)
    most = (1 << bits) - 1
    table = (np.arange(most + 1) * 255 + most // 2) // most
    return table.astype(np.uint8)[values]


def _colour_map(directory: Directory, layout: TiffLayout) -> np.ndarray:
    """Read the palette: uint8 [2^bits, 3], BGR. Some writers use 8 bits in place of 16."""
    values = np.array(directory.numbers(320), np.int64)
    count = 3 << layout.bits
    if len(values) < count:
        raise PixelFault(
            "corrupt", f"the palette TIFF has {len(values)} values in its colour map, not {count}"
        )
    table = values[:count].reshape(3, -1)
    if table.max() > 255:
        table = table >> 8
    return np.ascontiguousarray(table[::-1].T.astype(np.uint8))


def _divide(bgr: np.ndarray, alpha: np.ndarray) -> None:
    """Unpremultiply colours in place: c 255 / a, rounded; fully transparent ones are unchanged."""
    for start in range(0, len(bgr), _BLOCK):
        block = bgr[start : start + _BLOCK]
        weight = alpha[start : start + _BLOCK].astype(np.uint32)[..., None]
        plain = (block * np.uint32(255) + weight // 2) // np.maximum(weight, 1)
        block[:] = np.where(weight == 0, block, np.minimum(plain, 255))
