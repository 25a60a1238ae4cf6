"""BMP (Windows GDI device-independent bitmaps, and OS/2's): header and pixels.

Read here and not by Pillow, which takes a palette of two colours for one bit a pixel, and reads few masks.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from uhr.pixels import code_points
from uhr.pixels.code_points import ColourTags
from uhr.pixels.planes import Planes
from uhr.pixels.types import FileBytes, Header, PixelFault

_RAW, _RLE8, _RLE4, _BITFIELDS, _JPEG, _PNG, _ALPHA_BITFIELDS = range(7)
_FILE_HEADER = 14
_DEFAULT_MASKS = {16: (0x7C00, 0x3E0, 0x1F, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}
_CALIBRATED, _EMBEDDED, _LINKED = bytes(4), b"DEBM", b"KNIL"
"""Colour spaces of a BITMAPV4HEADER or BITMAPV5HEADER that are not sRGB under another name."""

_SLACK = 2048
"""Bytes by which writers' counts may be too large: padding, or header and palette."""

_BGRA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


class Dib(NamedTuple):
    """A bitmap header at `start`, of `size` bytes. `image_bytes` is its length of the pixels,
    or 0. `masks` are those of red, green, blue and opacity; the palette has `colours` entries of `entry`
    bytes from `palette` on.
    """

    start: int
    size: int
    width: int
    height: int
    top_down: bool
    bits: int
    compression: int
    image_bytes: int
    masks: tuple[int, int, int, int]
    palette: int
    colours: int
    entry: int

    @property
    def row(self) -> int:
        """Bytes of a row without compression."""
        return (self.width * self.bits + 31) // 32 * 4

    @property
    def pixels(self) -> int:
        """The offset after the palette, where an icon's pixels are."""
        return self.palette + self.colours * self.entry


def dib_header(source: FileBytes, start: int) -> Dib:
    """Read the bitmap header at an offset. Raises `PixelFault("truncated")` if the file ends in it."""
    fields = source.at(start, 128)
    size = int.from_bytes(fields[:4], "little")
    if len(fields) < (12 if size == 12 else max(16, min(size, 40))):
        raise PixelFault("truncated", "the bitmap ends in its header")
    compression = image_bytes = colours = 0
    if size < 40:
        width, height, _, bits = struct.unpack_from("<HHHH" if size == 12 else "<IIHH", fields, 4)
    else:
        names = struct.unpack_from("<iiHHIIiiI", fields, 4)
        width, height, _, bits, compression, image_bytes, _, _, colours = names
    masks = _DEFAULT_MASKS.get(bits, (0, 0, 0, 0))
    palette = start + size
    if compression in (_BITFIELDS, _ALPHA_BITFIELDS) and size != 64:
        count = 4 if size >= 56 or (size == 40 and compression == _ALPHA_BITFIELDS) else 3
        given = struct.unpack_from(f"<{count}I", fields.ljust(128, b"\0"), 40)
        red, green, blue, alpha = (*given, 0)[:4]
        masks = (red, green, blue, alpha) if any(given) else _BGRA
        palette += 4 * count if size == 40 else 0
    entry = 3 if size == 12 else 4
    indexed = min(colours or 1 << bits, 1 << bits) if bits <= 8 else 0
    return Dib(
        start,
        size,
        width,
        abs(height),
        height < 0,
        bits,
        compression,
        image_bytes,
        masks,
        palette,
        indexed,
        entry,
    )


def unsupported(dib: Dib) -> str:
    """Return why the pixels of a bitmap are not read here, or ""."""
    if dib.compression in (_JPEG, _PNG) or (dib.size == 64 and dib.compression == _BITFIELDS):
        name = {_JPEG: "a JPEG", _PNG: "a PNG", _BITFIELDS: "Huffman codes"}[dib.compression]
        return f"a BMP that contains {name}"
    if dib.compression > _ALPHA_BITFIELDS:
        return f"a BMP with compression {dib.compression}"
    coded = {_RLE8: (8,), _RLE4: (4,), _RAW: (1, 2, 4, 8, 16, 24, 32)}.get(dib.compression, (16, 32))
    if dib.bits not in coded:
        return f"a BMP of {dib.bits} bits a pixel with compression {dib.compression}"
    if any(mask and (not _is_run(mask) or mask >> dib.bits) for mask in dib.masks):
        return f"a BMP with the masks {', '.join(f'{mask:#x}' for mask in dib.masks)}"
    return ""


def _is_run(mask: int) -> bool:
    """Whether the bits that are set are next to each other."""
    lowest = mask & -mask
    return (mask // lowest + 1) & mask // lowest == 0


def depth(dib: Dib) -> int | None:
    """Return the bits per channel of the masks, None if they differ, or of a palette's colours."""
    if dib.bits not in _DEFAULT_MASKS:
        return 8
    counts = {mask.bit_count() for mask in dib.masks[:3]}
    return counts.pop() if len(counts) == 1 else None


def header(source: FileBytes) -> Header:
    """Read the header. Raises `PixelFault` for one that is truncated or damaged."""
    dib = dib_header(source, _FILE_HEADER)
    mode, bits = "RGBA" if dib.masks[3] else "RGB", depth(dib)
    if dib.bits <= 8:
        table = _palette(source, dib, min(_offset(source), source.size))
        gray = bool(len(table)) and bool((table == table[:, :1]).all())
        mode = "L" if gray else "P"
        if gray and dib.bits == 1 and set(table[:, 0].tolist()) == {0, 255}:
            bits = 1
    tags = _colours(source, dib)
    return Header(
        "BMP",
        dib.width,
        dib.height,
        mode,
        bits,
        has_alpha=bool(dib.masks[3]),
        has_icc=_profile_place(source, dib) is not None,
        colour=tags.space,
        unsupported=unsupported(dib),
        notes=(tags.note,) if tags.note else (),
    )


def _offset(source: FileBytes) -> int:
    return int.from_bytes(source.at(10, 4), "little")


def _colours(source: FileBytes, dib: Dib) -> ColourTags:
    """Return the calibrated colours of a BITMAPV4HEADER: XYZ of the primaries, which add up to white, and
    gammas."""
    fields = source.at(dib.start, 128)
    if dib.size < 108 or len(fields) < 108:
        return ColourTags()
    if fields[56:60] == _LINKED:
        return ColourTags(note="ICC profile ignored: it is in another file")
    if fields[56:60] != _CALIBRATED or not any(fields[60:108]):
        return ColourTags()
    ends = [[value / (1 << 30) for value in struct.unpack_from("<3i", fields, at)] for at in (60, 72, 84)]
    gammas = [value / 65536 for value in struct.unpack_from("<3I", fields, 96)]
    white = [sum(values) for values in zip(*ends, strict=True)]
    if min(map(sum, (white, *ends))) <= 0 or max(gammas) - min(gammas) > 0.01:
        return ColourTags(
            note="the calibrated colours of the BMP header are ignored: they describe no display"
        )
    points = [part / sum(values) for values in (white, *ends) for part in values[:2]]
    given = code_points.chromaticities(points)
    return code_points.from_chromaticities(given, gammas[0] or None, "the BMP header")


def _profile_place(source: FileBytes, dib: Dib) -> tuple[int, int] | None:
    """Return offset and bytes of the ICC profile that a BITMAPV5HEADER embeds."""
    fields = source.at(dib.start, 128)
    if dib.size < 124 or len(fields) < 120 or fields[56:60] != _EMBEDDED:
        return None
    offset, count = struct.unpack_from("<II", fields, 112)
    return dib.start + offset, count


def planes(data: bytes, header: Header) -> Planes:
    """Read the pixels. Raises `PixelFault` for a file that is truncated or damaged."""
    source = FileBytes(data, len(data))
    dib = dib_header(source, _FILE_HEADER)
    start = _offset(source) or dib.pixels
    if start < dib.palette:
        raise PixelFault("corrupt", f"the pixels of the BMP are at byte {start}, within its header")
    planes = dib_planes(data, dib, start)
    place = _profile_place(source, dib)
    if place is not None:
        planes.profile = data[place[0] : sum(place)]
    return planes


def dib_planes(data: bytes, dib: Dib, start: int) -> Planes:
    """Read the pixels at an offset. Raises `PixelFault` for data that are truncated or damaged."""
    source = FileBytes(data, len(data))
    if dib.compression in (_RLE8, _RLE4):
        values = _run_lengths(data, start, dib)
    else:
        needed = dib.row * dib.height
        if dib.image_bytes >= needed + dib.row + _SLACK:
            size = f"{dib.width} x {dib.height} pixels take {needed}"
            raise PixelFault("corrupt", f"the bitmap names {dib.image_bytes} bytes of pixels, its {size}")
        if start + needed > len(data):
            raise PixelFault(
                "truncated", f"the bitmap has {len(data) - start} of the {needed} bytes of its pixels"
            )
        values = _values(np.frombuffer(data, np.uint8, needed, start).reshape(dib.height, dib.row), dib)
    if not dib.top_down:
        values = values[::-1]
    if dib.bits <= 8:
        table = _palette(source, dib, start)
        if values.max() >= len(table):
            raise PixelFault(
                "corrupt", f"the bitmap has an index {values.max()} in a palette of {len(table)}"
            )
        return Planes(np.ascontiguousarray(table[values]))
    if dib.bits == 24:
        return Planes(np.ascontiguousarray(values))
    red, green, blue, alpha = dib.masks
    bgr = np.stack([_channel(values, mask) for mask in (blue, green, red)], axis=2)
    return Planes(bgr, _channel(values, alpha) if alpha else None)


def _palette(source: FileBytes, dib: Dib, end: int) -> np.ndarray:
    """Read the palette before `end`: uint8 [colours, 3], BGR."""
    count = max(0, min(dib.colours, (end - dib.palette) // dib.entry))
    data = source.at(dib.palette, count * dib.entry)
    whole = len(data) // dib.entry
    return np.frombuffer(data, np.uint8, whole * dib.entry).reshape(whole, dib.entry)[:, :3]


def _values(rows: np.ndarray, dib: Dib) -> np.ndarray:
    """Read rows padded to four bytes: indices or packed pixels [H, W], or for 24 bits BGR [H, W, 3]."""
    width = dib.width
    if dib.bits < 8:
        bits = np.unpackbits(rows, axis=1, count=width * dib.bits).reshape(len(rows), width, dib.bits)
        return bits @ (1 << np.arange(dib.bits - 1, -1, -1)).astype(np.uint8)
    if dib.bits == 24:
        return rows[:, : 3 * width].reshape(len(rows), width, 3)
    kind = {8: "u1", 16: "<u2", 32: "<u4"}[dib.bits]
    return np.ascontiguousarray(rows[:, : width * dib.bits // 8]).view(kind)


def _channel(values: np.ndarray, mask: int) -> np.ndarray:
    """Return the bits under a mask as uint8: the upper eight of more, scaled from fewer."""
    if mask == 0:
        return np.zeros(values.shape, np.uint8)
    shift, most = (mask & -mask).bit_length() - 1, mask // (mask & -mask)
    found = values >> shift & most
    if most > 255:
        return (found >> most.bit_length() - 8).astype(np.uint8)
    return ((np.arange(most + 1) * 255 + most // 2) // most).astype(np.uint8)[found]


def _run_lengths(data: bytes, start: int, dib: Dib) -> np.ndarray:
    """Decode RLE8 or RLE4 to indices, rows from the bottom; pixels without a run have index 0."""
    found = np.zeros((dib.height, dib.width), np.uint8)
    x = y = 0
    position = start
    while y < dib.height:
        if position + 2 > len(data):
            raise PixelFault("truncated", f"the bitmap ends after {y} of {dib.height} rows")
        count, value = data[position], data[position + 1]
        position += 2
        if count == 0 and value == 0:
            x, y = 0, y + 1
        elif count == 0 and value == 1:
            break
        elif count == 0 and value == 2:
            if position + 2 > len(data):
                raise PixelFault("truncated", f"the bitmap ends after {y} of {dib.height} rows")
            x, y = x + data[position], y + data[position + 1]
            position += 2
        else:
            many = count or value
            if count:
                run = np.array([value >> 4, value & 15] if dib.bits == 4 else [value], np.uint8)
                run = np.resize(run, many)
            else:
                length = (many * dib.bits + 7) // 8
                stored = np.frombuffer(data[position : position + length], np.uint8)
                if len(stored) < length:
                    raise PixelFault("truncated", f"the bitmap ends after {y} of {dib.height} rows")
                position += length + length % 2
                run = np.stack([stored >> 4, stored & 15], axis=1).ravel() if dib.bits == 4 else stored
            # what is past the end of a row is left out
            shown = max(0, min(many, dib.width - x))
            found[y, x : x + shown] = run[:shown]
            x += many
    return found
