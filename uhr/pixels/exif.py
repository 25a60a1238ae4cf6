"""Read orientation, Adobe RGB and texts from an EXIF block (EXIF 2.32, a TIFF structure)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

_ORIENTATION, _EXIF, _INTEROPERABILITY = 0x0112, 0x8769, 0xA005
_COLOUR_SPACE, _INDEX = 0xA001, 0x0001


class _Block(NamedTuple):
    data: bytes
    order: str

    def find(self, directory: int, tag: int) -> tuple[int, int, int] | None:
        """Return kind, count and the value field's offset of the first entry of `tag` in a directory."""
        if directory + 2 > len(self.data):
            return None
        count = struct.unpack_from(self.order + "H", self.data, directory)[0]
        for entry in range(directory + 2, min(directory + 2 + 12 * count, len(self.data) - 11), 12):
            found, kind, length = struct.unpack_from(self.order + "HHI", self.data, entry)
            if found == tag:
                return kind, length, entry + 8
        return None

    def number(self, directory: int, tag: int) -> int | None:
        """Return the value of an entry that is one SHORT or LONG; None otherwise."""
        found = self.find(directory, tag)
        if found is None or found[0] not in (3, 4) or found[1] != 1:
            return None
        return struct.unpack_from(self.order + ("H" if found[0] == 3 else "I"), self.data, found[2])[0]

    def text(self, directory: int, tag: int) -> str:
        """Return the value of an entry that is ASCII or UTF-8 text; empty otherwise."""
        found = self.find(directory, tag)
        if found is None or found[0] not in (2, 129):
            return ""
        _, length, place = found
        start = place if length <= 4 else struct.unpack_from(self.order + "I", self.data, place)[0]
        return text(self.data[start : start + length])


def _block(tiff: bytes) -> tuple[_Block, int] | None:
    """Return the block and the offset of its first directory; None if it is invalid."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return None
    return _Block(tiff, order), struct.unpack_from(order + "I", tiff, 4)[0]


def orientation(tiff: bytes) -> int:
    """Return tag 0x0112 of the first directory, 1..8; 1 if there is no valid one."""
    found = _block(tiff)
    value = None if found is None else found[0].number(found[1], _ORIENTATION)
    return value if value is not None and 1 <= value <= 8 else 1


def texts(tiff: bytes, tags: Sequence[int]) -> dict[int, str]:
    """Return the texts of these tags of the first directory, without those that are missing or empty."""
    block = _block(tiff)
    found = {} if block is None else {tag: block[0].text(block[1], tag) for tag in tags}
    return {tag: value for tag, value in found.items() if value}


def text(value: bytes) -> str:
    """Decode a text, which should be ASCII; UTF-8 is usual, and what is neither is read as Latin-1."""
    try:
        return value.decode("utf-8").strip("\0 ")
    except UnicodeDecodeError:
        return value.decode("latin-1").strip("\0 ")


def says_adobe_rgb(tiff: bytes) -> bool:
    """Whether the block names Adobe RGB, as cameras do that do not embed an ICC profile.

    It does so by the interoperability index R03 (DCF 2.0, "optional colour space"), or by the value 2 of the
    tag ColorSpace.
    """
    found = _block(tiff)
    directory = None if found is None else found[0].number(found[1], _EXIF)
    if found is None or directory is None:
        return False
    block = found[0]
    if block.number(directory, _COLOUR_SPACE) == 2:
        return True
    names = block.number(directory, _INTEROPERABILITY)
    index = None if names is None else block.find(names, _INDEX)
    return index is not None and block.data[index[2] : index[2] + 3] == b"R03"
