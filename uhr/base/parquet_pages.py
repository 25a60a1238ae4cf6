"""Where the values of an uncompressed Parquet column are in the file, so that they are read in place.

Arrow decodes a row group as a whole, and copies every value. A program that needs some large values of a file
mapped into memory copies these alone. The format is that of apache/parquet-format: `parquet.thrift` for page
headers, in Thrift's compact protocol, and `Encodings.md` for PLAIN values.
"""

from __future__ import annotations

import operator
import zlib
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from uhr.base.errors import one_line

_DATA_PAGE, _PLAIN = 0, 0
_TYPE, _BODY_BYTES, _CHECKSUM, _DATA_PAGE_HEADER = 1, 3, 4, 5
_VALUES, _ENCODING = 1, 2
"""Numbers of fields in `PageHeader` and `DataPageHeader`."""

_HEADER_BYTES = 128
"""The most bytes of a page header; without statistics it has some 30."""


class PageFault(ValueError):
    """A page that is damaged."""


class OtherForm(ValueError):
    """A column that `byte_strings` does not read, and Arrow may."""


def byte_strings(file: memoryview, group: pq.RowGroupMetaData, column: int, nullable: bool) -> list[slice]:
    """Find the values of column number `column` of a row group, and verify the checksums of its pages.

    Args:
        file: the bytes of the whole file.
        nullable: whether the column's schema allows null.

    Returns the slice of `file` that each row has. Raises `OtherForm` for anything but uncompressed PLAIN data
    pages of version 1 with checksums and without nulls, and `PageFault` for a wrong checksum.
    """
    chunk = group.column(column)
    if chunk.compression != "UNCOMPRESSED" or chunk.physical_type != "BYTE_ARRAY":
        raise OtherForm(f"{chunk.path_in_schema} is {chunk.compression} {chunk.physical_type}")
    at = chunk.data_page_offset
    end = at + chunk.total_compressed_size
    found: list[slice] = []
    while at < end:
        header = _page_header(bytes(file[at : min(at + _HEADER_BYTES, end)]))
        at += header.size
        stop = at + header.body
        if not at <= stop <= end:
            raise PageFault("a page is longer than its column")
        if zlib.crc32(file[at:stop]) != header.checksum & 0xFFFFFFFF:
            raise PageFault("CRC checksum verification failed")
        found += _values(file, at, stop, header.values, nullable)
        at = stop
    if len(found) != group.num_rows:
        raise OtherForm(f"{len(found)} values where the row group has {group.num_rows} rows")
    return found


def _values(file: memoryview, at: int, stop: int, count: int, nullable: bool) -> list[slice]:
    """The PLAIN values of the page's body from `at` to `stop`: a length of 4 bytes, then as many bytes."""
    if nullable:
        # definition levels, with their length before them; where they have a null, fewer values follow
        at += 4 + int.from_bytes(file[at : at + 4], "little")
    found = []
    while at < stop and len(found) < count:
        size = int.from_bytes(file[at : at + 4], "little")
        found.append(slice(at + 4, at + 4 + size))
        at += 4 + size
    if at != stop or len(found) != count:
        raise OtherForm("a page has nulls, or bytes that are not values")
    return found


class _PageHeader(NamedTuple):
    """A page header. size: its own bytes. body: the bytes of the page after it. values: how many it has."""

    size: int
    body: int
    checksum: int
    values: int


def _page_header(data: bytes) -> _PageHeader:
    try:
        fields, size = _struct(data, 0)
        if fields[_TYPE] != _DATA_PAGE or fields[_DATA_PAGE_HEADER][_ENCODING] != _PLAIN:
            raise OtherForm("a page is not a PLAIN data page of version 1")
        numbers = fields[_BODY_BYTES], fields[_CHECKSUM], fields[_DATA_PAGE_HEADER][_VALUES]
        return _PageHeader(size, *map(operator.index, numbers))
    except KeyError as error:
        raise OtherForm(f"a page header has no field {error}; 4 is the checksum") from None
    except (IndexError, TypeError) as error:
        raise PageFault(f"a page header cannot be read ({one_line(error)})") from None


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A struct in Thrift's compact protocol at offset `at`, and the offset after it."""
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        if kind in (1, 2):  # true, false
            fields[number] = kind == 1
        elif kind in (4, 5, 6):  # integers of 16, 32 and 64 bits
            fields[number], at = _integer(data, at)
        elif kind == 12:
            fields[number], at = _struct(data, at)
        else:
            raise OtherForm(f"a page header has field {number} of type {kind}")
    return fields, at + 1


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A signed integer at offset `at`, and the offset after it.

    A byte has 7 bits of it, the lowest first; the sign is in the lowest bit.
    """
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return (value >> 1) ^ -(value & 1), at
