"""A PNG file as a sequence of chunks (third edition, 5), and libpng's messages about it.

The decoder gets the image alone: no text, EXIF, XMP or profile of any size decides whether an image is
good, none is inflated, and what libpng warns of is about the image.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from uhr.pixels.types import LARGEST_PROFILE, MOST_PARTS, PixelFault

LONGEST_SIDE = 1_000_000
"""PNG_USER_WIDTH_MAX and PNG_USER_HEIGHT_MAX of libpng (pnglibconf.h), in pixels."""

_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_GRAY, _COLOUR, _PALETTE = 0, 2, 3
"""Colour types without an alpha channel."""

_END = b"IEND\xaeB`\x82"

_HARMLESS = {
    "libpng warning: IDAT: Extra compressed data": "extra bytes behind the compressed image data",
    "libpng warning: Extra compressed data in IDAT": "extra bytes behind the compressed image data",
    # about how the decoder is called, not about the file
    "libpng warning: Interlace handling should be turned on when using png_read_image": "",
}


class PngFile:
    """The chunks of a PNG. `decodable` are the bytes to decode, `key` is the content of the tRNS chunk (empty
    without one), `truncated` whether the file ends before IEND, `notes` what is odd but changes no pixel.

    Raises `PixelFault` where a chunk that the pixels depend on is damaged or unknown. The checksums of IDAT
    are left to the decoder.
    """

    def __init__(self, data: bytes) -> None:
        self.notes: list[str] = []
        self.truncated = False
        self.key = b""
        self._colour_type = data[25]
        self._iccp = b""
        self._seen: set[bytes] = set()
        self.decodable = self._walk(data)

    def profile(self) -> bytes:
        """The ICC profile of the iCCP chunk. Raises `PixelFault` if it is damaged or too large."""
        # a name, a zero, the compression method 0
        start = self._iccp.find(b"\0") + 2
        try:
            profile = zlib.decompressobj().decompress(self._iccp[start:], LARGEST_PROFILE + 1)
        except zlib.error:
            raise PixelFault("corrupt", "the iCCP chunk cannot be inflated") from None
        if not profile:
            raise PixelFault("corrupt", "it cannot be read")
        if len(profile) > LARGEST_PROFILE:
            raise PixelFault("too large", f"it has more than {LARGEST_PROFILE >> 20} MiB")
        return profile

    def judge(self, lines: Sequence[str]) -> None:
        """Add the harmless ones of the decoder's warnings to `notes`; raise `PixelFault` for damage."""
        for line in lines:
            if line not in _HARMLESS:
                raise PixelFault("corrupt", line)
            self.notes += [_HARMLESS[line]] if _HARMLESS[line] else []

    def _walk(self, data: bytes) -> bytes:
        view, kept, position = memoryview(data), [[0, 8]], 8
        # libpng writes the image data in chunks of 8 KiB
        for _ in range(MOST_PARTS + len(data) // 8192):
            if position + 8 > len(data):
                break
            length, kind = struct.unpack_from(">I4s", data, position)
            after = position + 12 + length
            if length == 0 and after > len(data):
                # only a checksum is cut off
                break
            if after > len(data) or not kind.isalpha():
                # the decoder would allocate whatever length it finds there
                cut = data.find(_END, position) < 0
                what = f"has {kind.hex()} where the kind of a chunk belongs"
                if kind.isalpha():
                    what = f"ends within its {kind.decode()} chunk of {length:,} bytes"
                raise PixelFault("truncated" if cut else "corrupt", f"the PNG {what}")
            if self._keep(kind, view[position + 4 : after]):
                if kept[-1][1] == position:
                    kept[-1][1] = after
                else:
                    kept.append([position, after])
            position = after
            if kind == b"IEND":
                return data if len(kept) == 1 else b"".join(view[start:stop] for start, stop in kept)
        else:
            raise PixelFault("unsupported", f"a PNG of more than {MOST_PARTS:,} chunks")
        self.truncated = data.find(_END, position) < 0
        # the decoder reports what is wrong with the rest
        return b"".join([*(view[start:stop] for start, stop in kept), view[position:]])

    def _keep(self, kind: bytes, chunk: memoryview) -> bool:
        """Whether the pixels depend on a chunk; `chunk` is its kind, its content and the checksum of both."""
        if kind == b"IDAT":
            self._seen.add(kind)
            return True
        whole = zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")
        name = kind.decode()
        transparency = (
            kind == b"tRNS"
            and self._colour_type in (_GRAY, _COLOUR, _PALETTE)
            and not self._seen & {b"tRNS", b"IDAT"}
        )
        if not whole and (transparency or kind in _CRITICAL):
            raise PixelFault("corrupt", f"the checksum of the PNG's {name} chunk is wrong")
        if kind[:1].isupper() and kind not in _CRITICAL:
            if not whole:
                raise PixelFault("corrupt", f"the PNG has an unknown chunk {name} with a wrong checksum")
            raise PixelFault("unsupported", f"a PNG with the unknown critical chunk {name}")
        if not whole:
            self._note(f"the {name} chunk is ignored: its checksum is wrong")
        elif transparency:
            self.key = bytes(chunk[4:-4])
        elif kind == b"iCCP" and not self._seen & {kind, b"IDAT"}:
            self._iccp = bytes(chunk[4:-4])
        self._seen.add(kind)
        # a palette of other colour types is a suggestion
        return transparency or (kind in _CRITICAL and (kind != b"PLTE" or self._colour_type == _PALETTE))

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
