"""Read IPTC-IIM records (version 4.2): maker and copyright as press agencies write them."""

from __future__ import annotations

import struct

CREATOR, CREDIT, COPYRIGHT = 80, 110, 116
"""Data sets of record 2: by-line, credit, copyright notice."""

_UTF8 = b"\x1b%G"
"""The value of 1:90 that declares UTF-8 (ISO 2022)."""


def datasets(block: bytes) -> dict[int, list[str]]:
    """Return the texts of record 2 by number of the data set; what is damaged ends the walk.

    Without a declared coding the texts are read as UTF-8 if they are valid, else as Latin-1.
    """
    found: dict[int, list[bytes]] = {}
    declared = False
    at = 0
    while at + 5 <= len(block) and block[at] == 0x1C:
        record, number, size = struct.unpack_from(">BBH", block, at + 1)
        start = at + 5
        if size & 0x8000:
            # an extended data set: the length of its length
            count = size & 0x7FFF
            if count > 4:
                break
            size, start = int.from_bytes(block[start : start + count], "big"), start + count
        if start + size > len(block):
            break
        value = block[start : start + size]
        if record == 1 and number == 90:
            declared = value == _UTF8
        elif record == 2:
            found.setdefault(number, []).append(value)
        at = start + size
    return {number: [_text(value, declared) for value in values] for number, values in found.items()}


def _text(value: bytes, declared: bool) -> str:
    try:
        return value.decode("utf-8").strip("\0 ")
    except UnicodeDecodeError:
        return value.decode("utf-8" if declared else "latin-1", "replace").strip("\0 ")
