"""The headers of JPEG (ITU T.81, EXIF 2.32), PNG (third edition) and WebP (RFC 9649), byte by byte."""

from __future__ import annotations

import struct
import zlib

from uhr.pixels import code_points, exif
from uhr.pixels.code_points import ColourTags
from uhr.pixels.types import MOST_PARTS, FileBytes, Header, PixelFault

_U16 = struct.Struct(">H").unpack_from
_U32 = struct.Struct(">I").unpack_from
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
"""JPEG markers without a length: TEM and the restarts."""

_PNG_COLOUR = (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_LARGEST_EXIF = 64 << 20
"""Bytes of an EXIF block that are read; only JPEG limits its size."""

_MOST_TRIES = 8
"""Places in a PNG's last block from which chunks are followed: any bytes may be the letters IDAT."""

_BLOCK = 64 << 10
"""Bytes that are read at once in a search."""


def jpeg(source: FileBytes) -> Header:
    """Walk the segments from SOI to the first SOS."""
    frame: tuple[int, int, int, int] | None = None
    orientation, has_icc, exif_block = 1, False, b""
    first, limit = source.first, len(source.first)
    position = 2
    for _ in range(MOST_PARTS):
        # marker and segment from the bytes at hand where they suffice: the common case costs no call
        if position + 24 <= limit:
            head, base = first, position
        else:
            head, base = source.at(position, 24), 0
        start = head.find(b"\xff", base, base + 24)
        if start != base:
            if base + 2 > len(head):
                break
            # junk between segments is skipped, as libjpeg does
            block = source.at(position, _BLOCK)
            start = block.find(b"\xff")
            position += len(block) if start < 0 else start
            continue
        if base + 2 > len(head):
            break
        marker = head[base + 1]
        if marker == 0xFF or marker in _BARE or marker == 0:
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            break
        if base + 4 > len(head):
            break
        length = _U16(head, base + 2)[0]
        if marker == 0xDA:
            adobe_rgb = not has_icc and exif.says_adobe_rgb(exif_block)
            return _jpeg_header(frame, orientation, has_icc, adobe_rgb)
        if marker == 0xF7:
            raise PixelFault("unsupported", "a JPEG-LS file cannot be opened here")
        if marker in _SOF:
            if base + 10 > len(head):
                break
            frame = (head[base + 4], *struct.unpack_from(">HHB", head, base + 5))
        elif marker == 0xE1 and not exif_block and head[base + 4 : base + 10] == b"Exif\0\0":
            exif_block = source.at(position + 10, max(length - 8, 0))
            orientation = exif.orientation(exif_block)
        elif marker == 0xE2 and head[base + 4 : base + 16] == b"ICC_PROFILE\0":
            has_icc = True
        position += 2 + max(length, 2)
    else:
        raise _too_many("JPEG", "segments")
    if frame is None:
        raise PixelFault("truncated", "the JPEG ends before its frame header")
    raise PixelFault("truncated", "the JPEG ends before its picture data")


def _jpeg_header(
    frame: tuple[int, int, int, int] | None, orientation: int, has_icc: bool, adobe_rgb: bool
) -> Header:
    if frame is None:
        raise PixelFault("corrupt", "the JPEG has picture data but no frame header before them")
    precision, height, width, components = frame
    if height == 0:
        raise PixelFault("unsupported", "a JPEG whose height is given behind its first scan (DNL)")
    if components not in _JPEG_MODES:
        raise PixelFault("unsupported", f"a JPEG of {components} components")
    mode = _JPEG_MODES[components]
    colour = code_points.ADOBE_RGB if adobe_rgb and mode == "RGB" else None
    unsupported = "" if precision == 8 else f"a JPEG of {precision} bits per channel"
    return Header(
        "JPEG", width, height, mode, precision, orientation, False, has_icc, False, colour, unsupported
    )


def png(source: FileBytes) -> Header:
    """Walk the chunks from IHDR to the first IDAT, and those after the image data for an eXIf chunk."""
    if source.first[12:16] != b"IHDR":
        if source.first[12:16] == b"CgBI":
            raise PixelFault("unsupported", "a PNG in Apple's private CgBI variant")
        kind = "truncated" if source.size < 33 else "corrupt"
        raise PixelFault(kind, "the PNG does not begin with an IHDR chunk")
    if source.size < 33:
        raise PixelFault("truncated", "the PNG ends in its header")
    width, height, bit_depth, colour = struct.unpack_from(">IIBB", source.first, 16)
    if colour not in _PNG_MODES or bit_depth not in (1, 2, 4, 8, 16):
        raise PixelFault("corrupt", f"the PNG header says colour type {colour} at {bit_depth} bits")
    orientation: int | None = None
    has_key = animated = False
    chunks: dict[bytes, bytes] = {}
    position = 33
    for _ in range(MOST_PARTS):
        head = source.at(position, 8)
        if len(head) < 8:
            raise PixelFault("truncated", "the PNG ends before its picture data")
        length, kind = _U32(head)[0], head[4:]
        if kind == b"IDAT":
            break
        if kind == b"IEND":
            raise PixelFault("corrupt", "the PNG holds no picture data")
        if kind == b"eXIf":
            orientation = _png_exif(source, position, length)
        elif kind in _PNG_COLOUR and kind not in chunks:
            chunks[kind] = source.at(position + 8, min(length, 32))
        elif kind in (b"zTXt", b"tEXt") and orientation is None:
            orientation = _png_text_exif(source, kind, position + 8, length)
        has_key |= kind == b"tRNS"
        animated |= kind == b"acTL"
        position += 12 + length
    else:
        raise _too_many("PNG", "chunks")
    if orientation is None:
        orientation = _late_exif(source, position)
    mode = _PNG_MODES[colour]
    has_icc, tags = _png_colour(chunks)
    return Header(
        "PNG",
        width,
        height,
        mode,
        bit_depth,
        orientation,
        has_key or "A" in mode,
        has_icc,
        animated,
        tags.space,
        tags.unsupported,
        (tags.note,) if tags.note else (),
    )


def _png_colour(chunks: dict[bytes, bytes]) -> tuple[bool, ColourTags]:
    """Whether an ICC profile describes the colours, and what other chunks say of them: cICP goes before iCCP,
    sRGB, and gAMA with cHRM (PNG third edition, 4.3).
    """
    note = ""
    if len(chunks.get(b"cICP", b"")) >= 4:
        primaries, transfer, matrix, full_range = chunks[b"cICP"][:4]
        tags = code_points.from_code_points(primaries, transfer, "the cICP chunk")
        if matrix != 0:
            note = f"the cICP chunk is ignored: matrix {matrix}, a PNG has only 0"
        elif tags.unsupported:
            return False, tags
        elif full_range != 1:
            return False, ColourTags(unsupported="the cICP chunk names narrow-range values")
        elif (primaries, transfer) != (2, 2):
            return False, tags
    if b"iCCP" in chunks:
        return True, ColourTags(note=note)
    if b"sRGB" in chunks:
        return False, ColourTags(note=note)
    gamma = chromaticities = None
    if len(chunks.get(b"gAMA", b"")) >= 4:
        encoding = _U32(chunks[b"gAMA"])[0]
        gamma = 100_000 / encoding if encoding else 0.0
    if len(chunks.get(b"cHRM", b"")) >= 32:
        values = [value / 100_000 for value in struct.unpack(">8I", chunks[b"cHRM"])]
        chromaticities = code_points.chromaticities(values)
    tags = code_points.from_chromaticities(chromaticities, gamma, "gAMA and cHRM")
    return False, tags._replace(note=note or tags.note)


def _png_text_exif(source: FileBytes, kind: bytes, position: int, length: int) -> int | None:
    """Orientation of the EXIF block that ImageMagick writes in hexadecimal digits, 1 for a damaged one; None
    for other text.
    """
    keyword = b"Raw profile type exif\0"
    if length > 1 << 20 or source.at(position, len(keyword)) != keyword:
        return None
    text = source.at(position + len(keyword), length - len(keyword))
    try:
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], 1 << 21)
        # a newline, "exif", the number of bytes, and digits in lines
        digits = b"".join(text.split()[2:])
        return exif.orientation(bytes.fromhex(digits.decode("ascii")).removeprefix(b"Exif\0\0"))
    except (zlib.error, ValueError):
        # not None: of many such chunks one is inflated
        return 1


def _late_exif(source: FileBytes, position: int) -> int:
    """Return the orientation of an eXIf chunk after a PNG's image data, which begin at `position`."""
    start = max(source.size - _BLOCK, position)
    tail = source.at(start, source.size - start)
    at = len(tail)
    for _ in range(_MOST_TRIES):
        at = tail.rfind(b"IDAT", 0, at)
        if at < 4:
            break
        found = _exif_behind(FileBytes(tail, len(tail)), at - 4)
        if found is not None:
            return found
    return _exif_behind(source, position) or 1


def _exif_behind(source: FileBytes, position: int) -> int | None:
    """Orientation of the first eXIf chunk from a PNG's IDAT chunk at `position` on, 1 if there is none before
    IEND; None if no chunks lead to IEND.

    Most encoders write IDAT chunks of one size, so many of them are stepped over at once where the same
    length and kind are found again.
    """
    stride = 1
    for _ in range(MOST_PARTS):
        head = source.at(position, 8)
        if len(head) < 8 or head[4:] == b"IEND":
            return 1 if head[4:] == b"IEND" else None
        length, kind = _U32(head)[0], head[4:]
        if kind == b"eXIf":
            return _png_exif(source, position, length)
        if kind == b"IDAT" and source.at(position + stride * (12 + length), 8) == head:
            position += stride * (12 + length)
            stride *= 2
            continue
        position += 12 + length if stride == 1 or kind != b"IDAT" else 0
        stride = max(stride // 2, 1)
    return None


def _png_exif(source: FileBytes, position: int, length: int) -> int:
    """Return the orientation of the eXIf chunk at `position`, if its checksum is right."""
    chunk = source.at(position + 4, min(length, _LARGEST_EXIF) + 8)
    if length <= _LARGEST_EXIF and zlib.crc32(chunk[:-4]) != int.from_bytes(chunk[-4:], "big"):
        return 1
    return exif.orientation(chunk[4:-4])


def _too_many(format: str, parts: str) -> PixelFault:
    return PixelFault("unsupported", f"a {format} of more than {MOST_PARTS:,} {parts}")


def webp(source: FileBytes) -> Header:
    """Read the first chunk: VP8 (lossy), VP8L (lossless) or VP8X (canvas, flags, EXIF after the image)."""
    data = source.first[:32]
    kind = data[12:16]
    if len(data) < 30:
        raise PixelFault("truncated", "the WebP ends in its header")
    if kind == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise PixelFault("corrupt", "the WebP has no VP8 start code")
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("WEBP", width & 0x3FFF, height & 0x3FFF, "RGB", 8)
    if kind == b"VP8L":
        if data[20] != 0x2F:
            raise PixelFault("corrupt", "the WebP has no VP8L signature")
        bits = struct.unpack_from("<I", data, 21)[0]
        alpha = bool(bits >> 28 & 1)
        mode = "RGBA" if alpha else "RGB"
        return Header("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, mode, 8, has_alpha=alpha)
    if kind == b"VP8X":
        flags = data[20]
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        alpha = bool(flags & 0x10)
        orientation = _webp_orientation(source) if flags & 0x08 else 1
        mode = "RGBA" if alpha else "RGB"
        return Header(
            "WEBP", width, height, mode, 8, orientation, alpha, bool(flags & 0x20), bool(flags & 0x02)
        )
    raise PixelFault("corrupt", f"the WebP begins with an unknown chunk {kind!r}")


def _webp_orientation(source: FileBytes) -> int:
    position = 12
    for _ in range(MOST_PARTS):
        head = source.at(position, 8)
        if len(head) < 8:
            return 1
        length = struct.unpack_from("<I", head, 4)[0]
        if head[:4] == b"EXIF":
            block = source.at(position + 8, min(length, _LARGEST_EXIF))
            # a stray JPEG prefix is common in the wild
            return exif.orientation(block.removeprefix(b"Exif\0\0"))
        position += 8 + length + (length & 1)
    return 1
