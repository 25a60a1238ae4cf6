"""Damage to image files, as bytes: cut, zeroed, overwritten, wrong declared size, megabytes of metadata.

Every function takes the bytes of a file and gives new bytes; nothing here decodes. Metadata is harmless: a
decoder must give the same pixels as without it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Damaged(NamedTuple):
    """`name` of the damage for a test's message, the bytes, and whether the pixels must stay the same."""

    name: str
    data: bytes
    harmless: bool

    def kinds(self, other: set[str]) -> set[str]:
        """The kinds of fault that the damage may result in. `other` are further kinds of damage at any place,
        which may hit a length, a marker or a signature."""
        known = {"cut": {"truncated"}, "declared": {"corrupt", "truncated"}}
        return known.get(self.name.split()[0], {"corrupt", "truncated"} | other)


def cut(data: bytes, share: float) -> bytes:
    """The first `share` (0..1) of the file."""
    return data[: int(len(data) * share)]


def zeroed(data: bytes, share: float, count: int) -> bytes:
    """`count` bytes from `share` (0..1) of the file on are zero."""
    return _replaced(data, int(len(data) * share), bytes(count))


def overwritten(data: bytes, start: int, count: int, seed: int) -> bytes:
    """`count` bytes from the offset `start` are random."""
    return _replaced(data, start, np.random.default_rng(seed).bytes(count))


def _replaced(data: bytes, start: int, new: bytes) -> bytes:
    new = new[: max(len(data) - start, 0)]
    return data[:start] + new + data[start + len(new) :]


def jpeg_scan(data: bytes) -> tuple[int, int]:
    """Offsets of the entropy-coded data of a JPEG's first scan: its first byte, and the last EOI."""
    position = 2
    while data[position + 1] != 0xDA:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position + 2 + int.from_bytes(data[position + 2 : position + 4], "big"), data.rfind(b"\xff\xd9")


def jpeg_segment(kind: int, body: bytes) -> bytes:
    """A JPEG segment with the marker FF `kind`; `body` of at most 65,533 bytes."""
    return struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def webp_chunk(kind: bytes, body: bytes) -> bytes:
    """A RIFF chunk, padded to an even length."""
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


# Declared size ---------------------------------------------------------------------------------------------


def with_size(data: bytes, format: str, width: int, height: int) -> bytes | None:
    """The file with another width and height in its header (checksums right); None for a format that has no
    entry here.
    """
    change = _SIZES.get(format)
    return None if change is None else change(bytearray(data), width, height)


def _jpeg_size(data: bytearray, width: int, height: int) -> bytes:
    position = 2
    while data[position + 1] not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    struct.pack_into(">HH", data, position + 5, height, width)
    return bytes(data)


def _png_size(data: bytearray, width: int, height: int) -> bytes:
    struct.pack_into(">II", data, 16, width, height)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    return bytes(data)


def _webp_size(data: bytearray, width: int, height: int) -> bytes:
    kind, start = bytes(data[12:16]), 20
    if kind == b"VP8X":
        data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, start + 1)
        struct.pack_into("<I", data, start + 1, bits & 0xF0000000 | (height - 1) << 14 | (width - 1))
    else:
        struct.pack_into("<HH", data, start + 6, width, height)
    return bytes(data)


def _gif_size(data: bytearray, width: int, height: int) -> bytes:
    struct.pack_into("<HH", data, 6, width, height)
    frame = data.find(b"\x2c\0\0\0\0", 13)
    struct.pack_into("<HH", data, frame + 5, width, height)
    return bytes(data)


def _bmp_size(data: bytearray, width: int, height: int) -> bytes:
    struct.pack_into("<ii", data, 18, width, height)
    return bytes(data)


def _tiff_size(data: bytearray, width: int, height: int) -> bytes:
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in (256, 257):
            value = width if tag == 256 else height
            struct.pack_into(order + ("H" if kind == 3 else "I"), data, entry + 8, value)
    return bytes(data)


def _avif_size(data: bytearray, width: int, height: int) -> bytes:
    position = data.find(b"ispe")
    while position > 0:
        struct.pack_into(">II", data, position + 8, width, height)
        position = data.find(b"ispe", position + 4)
    return bytes(data)


def _jpeg2000_size(data: bytearray, width: int, height: int) -> bytes:
    header = data.find(b"ihdr")
    if header > 0:
        struct.pack_into(">II", data, header + 4, height, width)
    codestream = data.find(b"\xff\x4f\xff\x51")
    struct.pack_into(">II", data, codestream + 8, width, height)
    return bytes(data)


def _ppm_size(data: bytearray, width: int, height: int) -> bytes:
    kind, _, _, rest = bytes(data).split(maxsplit=3)
    return b"%s\n%d %d\n%s" % (kind, width, height, rest)


def _qoi_size(data: bytearray, width: int, height: int) -> bytes:
    struct.pack_into(">II", data, 4, width, height)
    return bytes(data)


def _ico_size(data: bytearray, width: int, height: int) -> bytes:
    """In the directory alone; the image in the file has a size of its own."""
    data[6:8] = bytes([width % 256, height % 256])
    return bytes(data)


_SIZES: dict[str, Callable[[bytearray, int, int], bytes]] = {
    "JPEG": _jpeg_size,
    "PNG": _png_size,
    "WEBP": _webp_size,
    "GIF": _gif_size,
    "BMP": _bmp_size,
    "TIFF": _tiff_size,
    "AVIF": _avif_size,
    "JPEG2000": _jpeg2000_size,
    "PPM": _ppm_size,
    "QOI": _qoi_size,
    "ICO": _ico_size,
}


# Metadata --------------------------------------------------------------------------------------------------


def with_metadata(data: bytes, format: str, count: int) -> bytes | None:
    """The file with `count` bytes of metadata that no pixel depends on; None for a format that has no entry
    here.
    """
    add = _METADATA.get(format)
    return None if add is None else add(data, count)


def _jpeg_metadata(data: bytes, count: int) -> bytes:
    """XMP, as APP1 segments of 64 KiB behind the first one."""
    body = (b"http://ns.adobe.com/xap/1.0/\0" + b"x" * 65_533)[:65_533]
    first = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    return data[:first] + jpeg_segment(0xE1, body) * -(-count // len(body)) + data[first:]


def _png_metadata(data: bytes, count: int) -> bytes:
    """One iTXt chunk (XMP) before the image data."""
    return data[:33] + png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * count) + data[33:]


def _webp_metadata(data: bytes, count: int) -> bytes:
    """One XMP chunk behind the image data, and the VP8X chunk that announces it."""
    chunks = data[12:]
    if chunks[:4] != b"VP8X":
        if chunks[:4] == b"VP8L":
            bits = int.from_bytes(chunks[9:13], "little")
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            flags = 0x10 if bits >> 28 & 1 else 0
        else:
            width, height = struct.unpack_from("<HH", chunks, 14)
            flags = 0
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        chunks = webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size) + chunks
    chunks = chunks[:8] + bytes([chunks[8] | 0x04]) + chunks[9:] + webp_chunk(b"XMP ", b"x" * count)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _gif_metadata(data: bytes, count: int) -> bytes:
    """One comment extension before the first frame."""
    start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    blocks = (b"\xff" + b"x" * 255) * -(-count // 255)
    return data[:start] + b"\x21\xfe" + blocks + b"\0" + data[start:]


def _bmp_metadata(data: bytes, count: int) -> bytes:
    """A gap between the header and the pixels."""
    (start,) = struct.unpack_from("<I", data, 10)
    head = data[:2] + struct.pack("<IHHI", len(data) + count, 0, 0, start + count) + data[14:start]
    return head + b"x" * count + data[start:]


def _tiff_metadata(data: bytes, count: int) -> bytes:
    """A private tag (65000) whose values are at the end of the file; the directory moves behind them."""
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, directory)
    old = data[directory + 2 : directory + 2 + 12 * entries + 4]
    data += bytes(len(data) % 2)
    values, count = len(data), count + count % 2
    entry = struct.pack(order + "HHII", 65000, 7, count, values)
    moved = struct.pack(order + "H", entries + 1) + old[:-4] + entry + old[-4:]
    return data[:4] + struct.pack(order + "I", values + count) + data[8:] + b"x" * count + moved


def _box_at_the_end(data: bytes, count: int) -> bytes:
    """One `uuid` box (AVIF, JPEG 2000) at the end."""
    return data + struct.pack(">I", count + 24) + b"uuid" + bytes(range(16)) + b"x" * count


def _ppm_metadata(data: bytes, count: int) -> bytes:
    """Comment lines behind the signature."""
    return data[:3] + (b"#" + b"x" * 62 + b"\n") * -(-count // 64) + data[3:]


def _ico_metadata(data: bytes, count: int) -> bytes:
    """A gap between the directory and the only image."""
    (start,) = struct.unpack_from("<I", data, 18)
    return data[:18] + struct.pack("<I", start + count) + data[22:start] + b"x" * count + data[start:]


_METADATA: dict[str, Callable[[bytes, int], bytes]] = {
    "JPEG": _jpeg_metadata,
    "PNG": _png_metadata,
    "WEBP": _webp_metadata,
    "GIF": _gif_metadata,
    "BMP": _bmp_metadata,
    "TIFF": _tiff_metadata,
    "AVIF": _box_at_the_end,
    "JPEG2000": _box_at_the_end,
    "PPM": _ppm_metadata,
    "ICO": _ico_metadata,
}


def every_damage(data: bytes, format: str, width: int, height: int, seed: int = 0) -> Iterator[Damaged]:
    """Each kind of damage to an image of `width` x `height` px, some of them at several places."""
    for share in (0.3, 0.7, 0.98):
        yield Damaged(f"cut to {share:.0%}", cut(data, share), False)
    for share in (0.3, 0.6, 0.9):
        for count in (16, 512):
            yield Damaged(f"{count} zeros at {share:.0%}", zeroed(data, share, count), False)
            start = int(len(data) * share)
            name = f"{count} bytes overwritten at {share:.0%}"
            yield Damaged(name, overwritten(data, start, count, seed), False)
    for new_width, new_height in ((width, height * 2), (width * 2, height), (width, height // 2)):
        changed = with_size(data, format, new_width, new_height)
        if changed is not None:
            yield Damaged(f"declared as {new_width} x {new_height}", changed, False)
    for count in (300_000, 20_000_000):
        long = with_metadata(data, format, count)
        if long is not None:
            yield Damaged(f"{count:,} bytes of metadata", long, True)
