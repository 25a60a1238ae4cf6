"""Rows of Parquet parts by number: small values as Python objects, byte strings in place in the file."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from uhr.base import parquet
from uhr.base.errors import UserError, one_line
from uhr.base.parquet_pages import OtherForm, PageFault, byte_strings
from uhr.manifests.info import Part
from uhr.train.data.part_files import PartFiles
from uhr.train.encode.stored.parts import KEYS

GROUPS = 1024
"""Row groups whose small values are kept, of at most 64 rows each."""

DECODED_BYTES = 1 << 30
"""Bytes of byte strings kept that cannot be read in place; `encode` writes none."""

_KEY = 64
"""Hex digits of a key."""

_DAMAGE = (OSError, pa.ArrowException, PageFault)

_ENCODE_AGAIN = "copy the file again, or encode again into another folder"

OPEN_FILES = 64
MAPPED_BYTES = 1 << 30
"""Bytes that are read before the files are mapped anew. Until then, what was read counts as memory of this
process, though the system can take it back at any time."""


class DataFault(UserError):
    """A Parquet file that cannot be read or has invalid content; names file, row group and sample."""


class Location(NamedTuple):
    """Where a row is: its part, row group in the part, row in the group."""

    part: Part
    group: int
    row: int


class StoredRow(NamedTuple):
    """A row. values: by column. cells: byte strings by column, of the mapped file or Arrow's memory."""

    values: Mapping[str, Any]
    cells: Mapping[str, memoryview]


class PartRows:
    """The rows of Parquet parts; threads may share it.

    It keeps the small values of `GROUPS` row groups in memory, of mapped files at most `MAPPED_BYTES` and one
    row group, and of columns that other programs wrote, in a form that Arrow has to decode, `DECODED_BYTES`
    or one row group. Checksums of pages are verified when a row group is first read, and when it is read
    again after others have taken its place.
    """

    def __init__(self, files: PartFiles) -> None:
        self.files = files
        self._groups: OrderedDict[tuple[str, int], _Group] = OrderedDict()
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._read_bytes = self._decoded_bytes = 0
        # a run reads ahead in one thread, and held-out images in another
        self._lock = threading.Lock()

    def read(self, locations: Iterable[Location]) -> list[StoredRow]:
        """Read rows. Raises `DataFault` if the row group of one is damaged or cannot be read."""
        locations = list(locations)
        self.files.prepare((location.part, location.group) for location in locations)
        with self._lock:
            return [self._row(location) for location in locations]

    def text_locations(self, parts: Sequence[Part]) -> dict[str, Location]:
        """Where each text is, by its key. Raises `DataFault` if a part cannot be read."""
        self.files.prepare_footers(parts)
        return {key: location for part in parts for key, location in self._text_keys(part)}

    def _text_keys(self, part: Part) -> Iterator[tuple[str, Location]]:
        group = 0
        try:
            footer = self.files.footer(part)
            listed = (footer.metadata or {}).get(KEYS.encode(), b"").decode()
            at = 0
            for group in range(footer.num_row_groups):
                rows = footer.row_group(group).num_rows
                keys = [listed[start : start + _KEY] for start in range(at, at + rows * _KEY, _KEY)]
                at += rows * _KEY
                if not listed:  # of an earlier version
                    with self._lock:
                        file = self._file(part, group).parquet
                    keys = file.read_row_group(group, columns=["text_key"]).column(0).to_pylist()
                yield from ((key, Location(part, group, row)) for row, key in enumerate(keys))
        except (OSError, pa.ArrowException) as error:
            what = f"{self.files.name(part)}, row group {group}, column text_key: {one_line(error)}"
            raise DataFault(what, _ENCODE_AGAIN) from error

    def _row(self, location: Location) -> StoredRow:
        group, row = self._group(location), location.row
        data = self._file(location.part, location.group).bytes
        found = {name: data[places[row]] for name, places in group.places.items()}
        self._read_bytes += sum(map(len, found.values()))
        for name, cells in group.decoded.items():
            found[name] = cells[row]
        return StoredRow(group.values[row], found)

    def _group(self, location: Location) -> _Group:
        key = (location.part.path, location.group)
        if self.files.remote:
            self._file(location.part, location.group)  # which forgets the group if it is mapped anew
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = self._intact_group(location)
            self._decoded_bytes += group.decoded_bytes
            while len(self._groups) > 1 and (
                len(self._groups) > GROUPS or self._decoded_bytes > DECODED_BYTES
            ):
                _, oldest = self._groups.popitem(last=False)
                self._decoded_bytes -= oldest.decoded_bytes
        else:
            self._groups.move_to_end(key)
        return group

    def _intact_group(self, location: Location) -> _Group:
        part, number, _ = location
        try:
            return self._read_group(location)
        except _DAMAGE as error:
            if not self.files.discard(part, number):
                raise self._fault(location, error) from error
        # what was damaged is a copy on this machine, which is made again
        self._files.pop(self.files.key(part, number), None)
        try:
            return self._read_group(location)
        except _DAMAGE as error:
            raise self._fault(location, error) from error

    def _read_group(self, location: Location) -> _Group:
        file = self._file(location.part, location.group)
        group = file.parquet.metadata.row_group(location.group)
        self._read_bytes += group.total_byte_size
        table = file.parquet.read_row_group(location.group, columns=file.small, use_threads=False)
        found = _Group(table.to_pylist(), {}, {})
        for name, (number, nullable) in file.binary.items():
            try:
                found.places[name] = byte_strings(file.bytes, group, number, nullable)
            except OtherForm:
                column = file.parquet.read_row_group(location.group, columns=[name]).column(0)
                found.decoded[name] = [memoryview(cell.as_buffer() or b"") for cell in column]
        return found

    def _file(self, part: Part, group: int) -> _File:
        if self._read_bytes > MAPPED_BYTES:
            self._files.clear()
            self._read_bytes = 0
        key = self.files.key(part, group)
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = _File(self.files.mapped(part, group))
            if self.files.remote and (known := self._groups.pop((part.path, group), None)) is not None:
                # the file may have been fetched again since its checksums were verified
                self._decoded_bytes -= known.decoded_bytes
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        else:
            self._files.move_to_end(key)
        return file

    def _fault(self, location: Location, error: Exception) -> DataFault:
        """The error for an unreadable row group, with the sample if its small columns can still be read."""
        part, group, row = location
        sample = "unknown"
        try:
            file = self._file(part, group).parquet
            name = "sample_id" if "sample_id" in file.schema_arrow.names else "caption"
            sample = file.read_row_group(group, columns=[name]).column(0)[row].as_py()
        except (OSError, pa.ArrowException) as second:
            sample = f"unknown ({one_line(second)})"
        return DataFault(
            f"{self.files.name(part)}, row group {group}, row {row}, sample {sample}: {one_line(error)}",
            _ENCODE_AGAIN,
        )


class _Group(NamedTuple):
    """A row group. values: the small values of each row. places, decoded: by column the byte strings of each
    row, in the file or in memory."""

    values: list[dict[str, Any]]
    places: dict[str, list[slice]]
    decoded: dict[str, list[memoryview]]

    @property
    def decoded_bytes(self) -> int:
        return sum(len(cell) for cells in self.decoded.values() for cell in cells)


class _File:
    """A Parquet file, mapped into memory for as long as this object or a slice of `bytes` exists."""

    def __init__(self, data: pa.Buffer) -> None:
        self._buffer = data
        self.bytes = memoryview(data)

    @cached_property
    def parquet(self) -> pq.ParquetFile:
        return parquet.file_in(self._buffer, page_checksum_verification=True)

    @cached_property
    def binary(self) -> dict[str, tuple[int, bool]]:
        """The number in the file of each column of byte strings, and whether it may have nulls."""
        leaves = self.parquet.schema
        numbers = {leaves.column(number).path: number for number in range(len(leaves.names))}
        found = [field for field in self.parquet.schema_arrow if pa.types.is_binary(field.type)]
        return {field.name: (numbers[field.name], field.nullable) for field in found}

    @cached_property
    def small(self) -> list[str]:
        """The other columns."""
        return [name for name in self.parquet.schema_arrow.names if name not in self.binary]
