"""Directories of a TIFF (revision 6.0, section 2) or BigTIFF: their entries, read when they are needed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from uhr.pixels.types import FileBytes, PixelFault

_KINDS = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
_KINDS |= {13: "I", 16: "Q", 17: "q", 18: "Q"}
"""Type of an entry -> its struct format; pairs are rationals."""

_MOST_ENTRIES = 4096
_MOST_NUMBERS = 1 << 16
"""Most values of a tag, as many as there can be samples in a pixel. Only the lists of strips and tiles may be
longer."""


@dataclass
class Directory:
    """One directory. `order` is a struct byte order; `entries` has type, count, and the offset of the values
    by tag; `following` is the offset of the next directory, 0 without one.
    """

    source: FileBytes
    order: str
    big: bool
    following: int = 0
    entries: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def __contains__(self, tag: int) -> bool:
        return tag in self.entries

    def data(self, tag: int, most: int | None = None) -> bytes:
        """The bytes of a tag's values, of the first `most` of them; raises `PixelFault("truncated")` where
        the file ends before the last value.
        """
        kind, count, offset = self.entries[tag]
        width = struct.calcsize("<" + _KINDS[kind])
        if offset + width * count > self.source.size:
            raise PixelFault("truncated", f"the TIFF ends before the {width * count} bytes of its tag {tag}")
        return self.source.at(offset, width * (count if most is None else min(count, most)))

    def numbers(self, tag: int, default: tuple[int, ...] = (), most: int = _MOST_NUMBERS) -> tuple[int, ...]:
        """Return the integers of a tag, or `default` if it is missing. Those after the first `most` are not
        read: a number takes eighteen times the memory that it has in the file.
        """
        if tag not in self.entries:
            return default
        kind, count, _ = self.entries[tag]
        form = _KINDS[kind]
        if len(form) > 1 or form in "sfd":
            raise PixelFault("corrupt", f"the TIFF's tag {tag} has values of type {kind}, not integers")
        return struct.unpack(f"{self.order}{min(count, most)}{form}", self.data(tag, most))

    def number(self, tag: int, default: int) -> int:
        """Return the first integer of a tag, or `default` if it is missing or empty."""
        return (self.numbers(tag, most=1) or (default,))[0]

    def rationals(self, tag: int) -> list[float]:
        """Return the values of a tag of rationals; empty if it is missing or of another type."""
        if tag not in self.entries or self.entries[tag][0] not in (5, 10):
            return []
        kind, count, _ = self.entries[tag]
        count = min(count, _MOST_NUMBERS)
        parts = struct.unpack(f"{self.order}{2 * count}{_KINDS[kind][0]}", self.data(tag, count))
        return [a / b if b else 0.0 for a, b in zip(parts[::2], parts[1::2], strict=True)]


def first_directory(source: FileBytes) -> Directory:
    """Read the first directory of a file. Raises `PixelFault` for a truncated or damaged one."""
    head = source.at(0, 16)
    order = "<" if head.startswith(b"II") else ">"
    big = 43 in head[2:4]
    if len(head) < (16 if big else 8):
        raise PixelFault("truncated", "the TIFF ends in its header")
    offset = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0]
    return directory_at(source, order, big, offset)


def directory_at(source: FileBytes, order: str, big: bool, offset: int) -> Directory:
    """Read the directory at an offset."""
    width, entry = (8, 20) if big else (2, 12)
    head = source.at(offset, width) if offset + width <= source.size else b""
    if len(head) < width:
        raise PixelFault("truncated", f"the TIFF ends before its directory at byte {offset}")
    count = struct.unpack(order + ("Q" if big else "H"), head)[0]
    if not 0 < count <= _MOST_ENTRIES:
        raise PixelFault("corrupt", f"the TIFF has a directory of {count} entries")
    last = 8 if big else 4
    table = source.at(offset + width, entry * count + last)
    if len(table) < entry * count + last:
        raise PixelFault("truncated", "the TIFF ends in its directory")
    found = Directory(source, order, big)
    value = "Q" if big else "I"
    for at in range(0, entry * count, entry):
        tag, kind, many = struct.unpack_from(f"{order}HH{value}", table, at)
        if kind not in _KINDS or tag in found.entries:
            continue
        inline = offset + width + at + 4 + last
        fits = struct.calcsize("<" + _KINDS[kind]) * many <= last
        found.entries[tag] = (
            kind,
            many,
            inline if fits else struct.unpack_from(order + value, table, at + 4 + last)[0],
        )
    found.following = struct.unpack_from(order + value, table, entry * count)[0]
    return found


def sub_directories(directory: Directory, tag: int = 330, most: int = 16) -> Iterator[Directory]:
    """Return the directories that a tag points to (330: SubIFDs), except unreadable ones."""
    for offset in directory.numbers(tag)[:most]:
        try:
            yield directory_at(directory.source, directory.order, directory.big, offset)
        except PixelFault:
            return
