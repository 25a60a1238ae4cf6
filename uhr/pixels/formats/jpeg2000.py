"""JPEG 2000 (ISO/IEC 15444-1): the header of JP2 files and bare codestreams, and their pixels by OpenJPEG.

The decoders get the bare codestream, never the boxes around it: colours, palettes and channel
definitions are read here. OpenCV decodes 8 to 16 bits exactly. Pillow decodes what OpenCV does not, and only
up to 8 bits: its conversion of deeper colour lets white overflow to black.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from uhr.pixels import code_points, exif
from uhr.pixels.code_points import ColourTags
from uhr.pixels.decoder_noise import captured
from uhr.pixels.formats import pillow_formats
from uhr.pixels.formats.isobmff import boxes as isobmff
from uhr.pixels.planes import Planes
from uhr.pixels.types import FileBytes, Header, PixelFault

_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
_SOC_SIZ = b"\xff\x4f\xff\x51"
_SOT, _EOC = b"\xff\x90", b"\xff\xd9"
_EXIF = b"JpgTiffExif->JP2"

_SRGB, _GRAY, _SYCC, _CMYK = 16, 17, 18, 12
_CHANNELS = {_SRGB: 3, _GRAY: 1, _SYCC: 3, _CMYK: 4}
_OTHER_SPACES = {
    0: "bi-level (0 is white)",
    1: "YCbCr(1)",
    3: "YCbCr(2)",
    4: "YCbCr(3)",
    9: "PhotoYCC",
    11: "CMY",
}
_OTHER_SPACES |= {13: "YCCK", 14: "CIELab", 15: "bi-level", 19: "CIEJab", 20: "e-sRGB", 21: "ROMM-RGB"}
_OTHER_SPACES |= {22: "YPbPr(1125/60)", 23: "YPbPr(1250/50)", 24: "e-sYCC"}
"""Enumerated colour spaces (15444-1 table I.10, 15444-2 table M.25)."""

_MOST_PARTS = 10_000_000


class _Component(NamedTuple):
    bits: int
    signed: bool
    dx: int
    dy: int


@dataclass
class _Facts:
    """The facts from boxes and codestream. `space` is an enumerated colour space or None; `codestream` the
    offset of its first byte, `end` the offset after the box around it, which may be past the end of the file.
    """

    codestream: int = 0
    end: int = 0
    size: tuple[int, int] = (0, 0)
    origin: tuple[int, int] = (0, 0)
    tiles: int = 0
    components: list[_Component] = field(default_factory=list)
    space: int | None = None
    icc: bytes | None = None
    tags: ColourTags = field(default_factory=ColourTags)
    palette: bytes = b""
    mapping: bytes = b""
    definitions: dict[int, tuple[int, int]] = field(default_factory=dict)
    orientation: int = 1

    @property
    def channels(self) -> int:
        """Channels of the image: those of its palette, or its components."""
        return self.palette[2] if self.palette else len(self.components)

    @property
    def colours(self) -> int:
        """The number of colour channels."""
        if self.icc is not None:
            return {b"GRAY": 1, b"RGB ": 3, b"CMYK": 4}.get(self.icc[16:20], 0)
        if self.space is not None:
            return _CHANNELS.get(self.space, 0)
        return 3 if self.channels >= 3 else 1


def header(source: FileBytes) -> Header:
    """Read the header of a JP2 file or a codestream. Raises `PixelFault` for a truncated or damaged one."""
    facts = _facts(source)
    alpha, unsupported = _channels(facts)
    depths = {component.bits for component in facts.components}
    mode = {1: "L", 3: "RGB", 4: "CMYK"}.get(facts.colours, "")
    mode = "P" if facts.palette else f"{mode}A" if alpha and mode != "CMYK" else mode
    notes = [facts.tags.note] if facts.tags.note else []
    if alpha and not facts.definitions:
        notes.append("the last component is not defined, taken for opacity")
    if facts.orientation != 1:
        notes.append(
            f"orientation {facts.orientation} in an EXIF box is ignored: JPEG 2000 has no orientation"
        )
    return Header(
        "JPEG2000",
        *facts.size,
        mode,
        depths.pop() if len(depths) == 1 else None,
        has_alpha=alpha,
        has_icc=facts.icc is not None,
        colour=facts.tags.space,
        unsupported=unsupported or facts.tags.unsupported,
        notes=tuple(notes),
    )


def _channels(facts: _Facts) -> tuple[bool, str]:
    """Return whether the last channel is opacity, and why the image cannot be decoded correctly, or ""."""
    components = facts.components
    if any(component.signed for component in components):
        return False, "a JPEG 2000 of signed values"
    if any((component.dx, component.dy) != (1, 1) for component in components):
        return False, "a JPEG 2000 with subsampled components"
    if facts.origin != (0, 0):
        return False, "a JPEG 2000 whose image does not begin at the origin of its grid"
    if len({component.bits for component in components}) != 1 or not 1 <= components[0].bits <= 16:
        bits = sorted({component.bits for component in components})
        return False, f"a JPEG 2000 of {', '.join(map(str, bits))} bits per component"
    if facts.space is not None and facts.space not in _CHANNELS:
        name = _OTHER_SPACES.get(facts.space, "unknown")
        return False, f"a JPEG 2000 in the colour space {facts.space} ({name})"
    colours, extra = facts.colours, facts.channels - facts.colours
    if not colours or extra not in (0, 1) or (facts.palette and not _is_plain_palette(facts)):
        return False, f"a JPEG 2000 of {facts.channels} channels in {colours or 'unknown'} colours"
    if len(components) == 2 and components[0].bits > 8:
        return True, f"a JPEG 2000 of gray and opacity at {components[0].bits} bits"
    return extra == 1, _definitions(facts, colours)


def _is_plain_palette(facts: _Facts) -> bool:
    """Whether one component of at most 8 bits is mapped through columns of 8 bits, in their order."""
    columns = facts.palette[2]
    depths = facts.palette[3 : 3 + columns]
    in_order = b"".join(struct.pack(">HBB", 0, 1, column) for column in range(columns))
    plain = set(depths) == {7} and facts.mapping in (b"", in_order)
    return plain and len(facts.components) == 1 and facts.components[0].bits <= 8


def _definitions(facts: _Facts, colours: int) -> str:
    """Return why the channel definitions (`cdef`) are not read here, or ""."""
    for channel, (kind, of) in facts.definitions.items():
        if kind == 2:
            return "a JPEG 2000 with premultiplied opacity"
        if kind == 0 and of not in (channel + 1, 0, 65535):
            return "a JPEG 2000 whose channels are in another order than its colour space"
        if (kind == 1) != (channel >= colours) and kind != 65535:
            return "a JPEG 2000 whose opacity is not its last channel"
    return ""


# Boxes and markers -----------------------------------------------------------------------------------------


def _facts(source: FileBytes) -> _Facts:
    facts = _Facts(end=source.size)
    try:
        if source.first.startswith(_SIGNATURE):
            _read_boxes(source, facts)
        _read_size(source, facts)
        if facts.space == 0 and [component.bits for component in facts.components] != [1]:
            # bi-level is one component of one bit: this is what OpenJPEG writes for an unknown space
            facts.space = None
    except (struct.error, IndexError) as error:
        raise PixelFault("corrupt", f"the boxes of the JPEG 2000 are damaged ({error})") from None
    return facts


def _read_boxes(source: FileBytes, facts: _Facts) -> None:
    for box in isobmff.walk(source):
        if box.kind == b"jp2h":
            for kind, body in isobmff.children(isobmff.content(source, box)):
                _read_header_box(kind, body, facts)
        elif box.kind == b"jp2c" and not facts.codestream:
            facts.codestream, facts.end = box.start, box.end
        elif box.kind == b"uuid" and source.at(box.start, 16) == _EXIF:
            block = source.at(box.start + 16, min(box.end - box.start, 1 << 16))
            facts.orientation = exif.orientation(block.removeprefix(b"Exif\0\0"))
    if not facts.codestream:
        kind = "truncated" if isobmff.ends_early(source) or source.size < 4096 else "corrupt"
        raise PixelFault(kind, "the JPEG 2000 has no codestream (jp2c)")


def _read_header_box(kind: bytes, body: bytes, facts: _Facts) -> None:
    if kind == b"colr" and facts.icc is None and facts.space is None:
        method = body[0]
        if method == 1:
            facts.space = int.from_bytes(body[3:7], "big")
        elif method in (2, 3):
            facts.icc = body[3:]
        elif method == 5:
            primaries, transfer, matrix = struct.unpack_from(">HHH", body, 3)
            facts.space = _SRGB
            facts.tags = code_points.from_code_points(primaries, transfer, "its colr box")
            if matrix not in (0, 2):
                facts.tags = ColourTags(
                    unsupported=f"its colr box names the matrix {matrix}, only RGB is read"
                )
    elif kind == b"pclr":
        facts.palette = body
    elif kind == b"cmap":
        facts.mapping = body
    elif kind == b"cdef":
        for place in range(2, 2 + 6 * int.from_bytes(body[:2], "big"), 6):
            channel, meaning, of = struct.unpack_from(">HHH", body, place)
            facts.definitions[channel] = meaning, of


def _read_size(source: FileBytes, facts: _Facts) -> None:
    """Read the SIZ segment: the grid, and depth and sampling of each component."""
    head = source.at(facts.codestream, 42)
    if len(head) < 42:
        raise PixelFault("truncated", "the JPEG 2000 ends in the header of its codestream")
    if not head.startswith(_SOC_SIZ):
        raise PixelFault("corrupt", "the codestream of the JPEG 2000 does not begin with its size")
    right, bottom, left, top = struct.unpack_from(">IIII", head, 8)
    (count,) = struct.unpack_from(">H", head, 40)
    table = source.at(facts.codestream + 42, 3 * count)
    if len(table) < 3 * count or not count:
        raise PixelFault("truncated" if count else "corrupt", f"the JPEG 2000 lists {count} components")
    facts.size, facts.origin = (right - left, bottom - top), (left, top)
    wide, high, x, y = struct.unpack_from(">IIII", head, 24)
    if not wide or not high or x > left or y > top:
        raise PixelFault("corrupt", f"the JPEG 2000 has tiles of {wide} x {high} pixels from {x}, {y}")
    facts.tiles = -(-(right - x) // wide) * -(-(bottom - y) // high)
    facts.components = [
        _Component((table[at] & 0x7F) + 1, table[at] >= 0x80, table[at + 1], table[at + 2])
        for at in range(0, 3 * count, 3)
    ]


def _check_whole(source: FileBytes, facts: _Facts) -> None:
    """Raise `PixelFault` unless tile-part follows tile-part up to the end marker, and no tile is missing."""
    position = facts.codestream + 2
    tiles: set[int] = set()
    for _ in range(_MOST_PARTS):
        head = source.at(position, 12)
        marker = head[:2]
        if marker == _EOC:
            break
        if len(head) < 12:
            raise PixelFault("truncated", "the JPEG 2000 ends before its end marker")
        if marker == _SOT:
            tiles.add(int.from_bytes(head[4:6], "big"))
            length = int.from_bytes(head[6:10], "big")
            if length == 0:
                # the last tile-part, up to the end of the codestream
                if facts.end > source.size or source.at(facts.end - 2, 2) != _EOC:
                    raise PixelFault("truncated", "the JPEG 2000 ends before its end marker")
                break
            position += max(length, 12)
        elif marker[0] == 0xFF:
            position += 2 + int.from_bytes(head[2:4], "big")
        else:
            raise PixelFault("corrupt", f"the JPEG 2000 has {marker.hex()} where a marker belongs")
    if len(tiles) != facts.tiles:
        raise PixelFault("corrupt", f"the JPEG 2000 has {len(tiles)} of its {facts.tiles} tiles")


# Pixels ----------------------------------------------------------------------------------------------------


def planes(data: bytes, header: Header) -> Planes:
    """Read the pixels. Raises `PixelFault` for a file that is truncated or damaged."""
    source = FileBytes(data, len(data))
    facts = _facts(source)
    _check_whole(source, facts)
    stored = _components(data[facts.codestream : facts.end], facts)
    bits = facts.components[0].bits
    if facts.palette:
        stored = _through_palette(stored[..., 0], facts.palette)
    elif bits > 8:
        stored = np.right_shift(stored, bits - 8).astype(np.uint8)
    elif bits < 8:
        most = (1 << bits) - 1
        stored = ((stored.astype(np.uint16) * 255 + most // 2) // most).astype(np.uint8)
    alpha = np.ascontiguousarray(stored[..., -1]) if header.has_alpha else None
    colours = stored[..., : facts.colours]
    cmyk = None
    if facts.colours == 1:
        colours = np.repeat(colours, 3, axis=2)
    elif facts.colours == 4:
        cmyk = np.ascontiguousarray(colours)
        colours = pillow_formats.converted(cmyk, "CMYK", "RGB")
    elif facts.space == _SYCC:
        colours = pillow_formats.converted(np.ascontiguousarray(colours), "YCbCr", "RGB")
    return Planes(np.ascontiguousarray(colours[..., ::-1]), alpha, cmyk, facts.icc)


def _components(codestream: bytes, facts: _Facts) -> np.ndarray:
    """Decode the stored values: uint8 or uint16 [H, W, components]."""
    count, bits = len(facts.components), facts.components[0].bits
    if count != 2 and bits >= 8:
        import cv2

        wrapped = _jp2(codestream, facts)
        with captured() as lines:
            pixels = cv2.imdecode(np.frombuffer(wrapped, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or lines:
            why = f" ({lines[0]})" if lines else ""
            raise PixelFault("corrupt", f"the JPEG 2000 is damaged{why}")
        if count == 1:
            return pixels.reshape(*pixels.shape[:2], 1)
        return pixels[..., (2, 1, 0) if count == 3 else (2, 1, 0, 3)]
    image = pillow_formats.load(pillow_formats.open_image(io.BytesIO(codestream), ("JPEG2000",)))
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    # Pillow shifts fewer bits to the upper end
    return pixels if bits == 8 else np.right_shift(pixels, 8 - bits)


def _jp2(codestream: bytes, facts: _Facts) -> bytes:
    """Wrap the codestream in a minimal JP2 file: OpenCV warns of one without a colour space."""
    width, height = facts.size
    count, bits = len(facts.components), facts.components[0].bits
    size = struct.pack(">IIHBBBB", height, width, count, bits - 1, 7, 0, 0)
    colour = struct.pack(">BBBI", 1, 0, 0, _GRAY if count == 1 else _SRGB)
    inner = _box(b"ihdr", size) + _box(b"colr", colour)
    head = _SIGNATURE + _box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + _box(b"jp2h", inner)
    return head + _box(b"jp2c", codestream)


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def _through_palette(indices: np.ndarray, palette: bytes) -> np.ndarray:
    """Look up a palette: uint8 [H, W, columns] from a `pclr` box with columns of 8 bits."""
    count, columns = struct.unpack_from(">HB", palette)
    table = np.frombuffer(palette, np.uint8, count * columns, 3 + columns).reshape(count, columns)
    if indices.max() >= count:
        raise PixelFault(
            "corrupt", f"the JPEG 2000 has an index {indices.max()} in a palette of {count} colours"
        )
    return table[indices]
