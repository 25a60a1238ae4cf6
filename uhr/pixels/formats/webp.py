"""A WebP file as a RIFF container (RFC 9649): its profile, and whether it is complete."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from uhr.pixels.types import LARGEST_PROFILE, MOST_PARTS, PixelFault


class WebpFile:
    """A WebP file: `decodable` are the bytes to decode, `truncated` whether the file is shorter than its
    container declares, `notes` what is odd but changes no pixel.
    """

    def __init__(self, data: bytes) -> None:
        self.decodable = data
        self.notes: list[str] = []
        self.truncated = int.from_bytes(data[4:8], "little") + 8 > len(data)

    def profile(self) -> bytes:
        """The ICC profile of the ICCP chunk. Raises `PixelFault` if there is none, or if it is too large."""
        data, position = self.decodable, 12
        for _ in range(MOST_PARTS):
            if position + 8 > len(data):
                break
            kind, length = struct.unpack_from("<4sI", data, position)
            if kind == b"ICCP":
                if length > LARGEST_PROFILE:
                    raise PixelFault("too large", f"it has more than {LARGEST_PROFILE >> 20} MiB")
                return data[position + 8 : position + 8 + length]
            position += 8 + length + (length & 1)
        raise PixelFault("corrupt", "it cannot be read")

    def judge(self, lines: Sequence[str]) -> None:
        """libwebp prints nothing: whatever is printed is damage."""
        for line in lines:
            raise PixelFault("corrupt", line)
