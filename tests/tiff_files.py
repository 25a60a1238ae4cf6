"""TIFFs of any layout, put together tag by tag (TIFF 6.0), for the tests of what is read of them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

NONE, FAX4, LZW, JPEG, DEFLATE, PACKBITS = 1, 4, 5, 7, 8, 32773
_BY_PILLOW = {FAX4: "group4", LZW: "tiff_lzw", PACKBITS: "packbits"}
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


class Layout(NamedTuple):
    """How samples are stored; `tile` is the side of square tiles, None for strips of `rows`."""

    bits: int = 8
    photometric: int = 2
    compression: int = NONE
    planar: bool = False
    order: str = "<"
    big: bool = False
    predictor: int = 1
    rows: int = 1 << 30
    tile: int | None = None
    reversed_bits: bool = False
    extra: tuple[int, ...] = ()


def write(samples: np.ndarray, layout: Layout, tags: dict[int, Any] | None = None) -> bytes:
    """A file of the samples, [H, W, S] integers of `layout.bits`; `tags` adds or replaces entries: integers,
    bytes, or (type, integers); None leaves one out.
    """
    height, width, count = samples.shape
    segments = [_compressed(part, layout) for part in _parts(samples, layout)]
    entries: dict[int, Any] = {
        256: width,
        257: height,
        258: (3, [layout.bits] * count),
        259: (3, [layout.compression]),
        262: (3, [layout.photometric]),
        277: (3, [count]),
        284: (3, [2 if layout.planar else 1]),
    }
    if layout.tile:
        entries |= {322: layout.tile, 323: layout.tile}
    else:
        entries[278] = min(layout.rows, height)
    if layout.predictor != 1:
        entries[317] = (3, [layout.predictor])
    if layout.reversed_bits:
        entries[266] = (3, [2])
    if layout.extra:
        entries[338] = (3, layout.extra)
    return assemble(segments, {**entries, **(tags or {})}, layout)


def assemble(segments: list[bytes], entries: dict[int, Any], layout: Layout) -> bytes:
    """A file of these strips or tiles, which come before the directory, and these entries."""
    order, big = layout.order, layout.big
    value, start = ("Q", 16) if big else ("I", 8)
    offsets = [start + sum(map(len, segments[:i])) for i in range(len(segments))]
    places = (
        {324: offsets, 325: [len(s) for s in segments]}
        if layout.tile
        else {
            273: offsets,
            279: [len(s) for s in segments],
        }
    )
    entries = {tag: v for tag, v in {**places, **entries}.items() if v is not None}
    directory = start + sum(map(len, segments))
    behind = (
        directory + struct.calcsize(f"<{'Q' if big else 'H'}{value}") + (20 if big else 12) * len(entries)
    )
    table = more = b""
    for tag, given in sorted(entries.items()):
        kind, count, data = _values(given, order)
        if len(data) > struct.calcsize(value):
            data, more = struct.pack(order + value, behind + len(more)), more + data + bytes(len(data) % 2)
        table += struct.pack(f"{order}HH{value}", tag, kind, count) + data.ljust(
            struct.calcsize(value), b"\0"
        )
    head = (
        struct.pack(order + "HHHQ", 43, 8, 0, directory) if big else struct.pack(order + "HI", 42, directory)
    )
    count = struct.pack(order + ("Q" if big else "H"), len(entries))
    mark = b"II" if order == "<" else b"MM"
    return mark + head + b"".join(segments) + count + table + bytes(struct.calcsize(value)) + more


def _values(given: Any, order: str) -> tuple[int, int, bytes]:
    """Type, count and bytes of an entry."""
    if isinstance(given, bytes):
        return 7, len(given), given
    kind, values = given if isinstance(given, tuple) else (4, given if isinstance(given, list) else [given])
    form = {3: "H", 4: "I", 5: "II", 16: "Q"}[kind]
    flat = [part for value in values for part in value] if kind == 5 else list(values)
    return kind, len(values), struct.pack(order + form[0] * len(flat), *flat)


def _parts(samples: np.ndarray, layout: Layout) -> list[np.ndarray]:
    """The samples of each strip or tile, in the order of the file."""
    height, width, count = samples.shape
    planes = [samples[..., i : i + 1] for i in range(count)] if layout.planar else [samples]
    parts = []
    for plane in planes:
        if not layout.tile:
            rows = min(layout.rows, height)
            parts += [plane[y : y + rows] for y in range(0, height, rows)]
            continue
        side = layout.tile
        for y in range(0, height, side):
            for x in range(0, width, side):
                tile = plane[y : y + side, x : x + side]
                spare = ((0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0))
                parts.append(np.pad(tile, spare, mode="edge"))
    return parts


def packed(values: np.ndarray, bits: int, order: str) -> bytes:
    """Rows of samples, each padded to a whole byte; the first sample in the upper bits."""
    rows = values.reshape(values.shape[0], -1)
    if bits in (8, 16):
        return rows.astype("u1" if bits == 8 else f"{order}u2").tobytes()
    digits = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(digits.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def _compressed(part: np.ndarray, layout: Layout) -> bytes:
    if layout.compression == JPEG:
        return _jpeg(part)
    if layout.predictor == 2:
        wrap = (1 << layout.bits) - 1
        part = np.concatenate([part[:, :1], np.diff(part.astype(np.int64), axis=1) & wrap], axis=1)
    data = packed(part, layout.bits, layout.order)
    if layout.compression == DEFLATE:
        data = zlib.compress(data)
    elif layout.compression in _BY_PILLOW:
        data = _by_pillow(data, part.shape[0], part.shape[1], layout.compression)
    return data.translate(_REVERSED) if layout.reversed_bits and layout.compression != FAX4 else data


def _by_pillow(data: bytes, rows: int, width: int, compression: int) -> bytes:
    """Compressed by libtiff, as the one strip of an image of bytes (of bits, for fax)."""
    size = (width, rows) if compression == FAX4 else (len(data) // rows, rows)
    image = Image.frombytes("1" if compression == FAX4 else "L", size, data)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", compression=_BY_PILLOW[compression], tiffinfo={278: rows}, strip_size=1 << 30)
    file = buffer.getvalue()
    tags = Image.open(io.BytesIO(file)).tag_v2
    assert len(tags[273]) == 1, "one strip"
    return file[tags[273][0] : tags[273][0] + tags[279][0]]


def _jpeg(part: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(part[..., 0].astype(np.uint8) if part.shape[2] == 1 else part.astype(np.uint8))
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
