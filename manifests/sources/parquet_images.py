"""Parquet tables of images as a source: image bytes in a column, or paths of files of this machine."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from uhr.base import parquet
from uhr.base.errors import UserError, one_line
from uhr.base.paths import text_path, unescaped
from uhr.manifests.sources import tables
from uhr.manifests.sources.base import (
    Advance,
    Item,
    Listing,
    LocalPath,
    items_table,
    numbered,
    version_of,
)
from uhr.manifests.sources.blobs import Blob, FaultBlob, LocalBlob, MemoryBlob
from uhr.manifests.sources.table_rows import SCHEMA, TableRows, stated_sizes
from uhr.manifests.uris import path_of, uri_of
from uhr.pixels.files import changed
from uhr.pixels.types import PixelFault

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
FILE_NAMES = ("file_name", "path", "image_path", "file", "filename", "filepath")

HELD = 256 * 2**20
"""Bytes of images that a process keeps, because a unit of images is read once for each group of stages."""


class ParquetImages(TableRows):
    """Rows of Parquet files, each with an image: its bytes, alone or in the struct of `datasets.Image`, or
    the path of its file. The other columns go into the rows as those of a JSON sidecar.

    path: a file, a folder or a pattern. image: the column of the bytes. file: the column of the paths, which
    are relative to `root` (by default to the folder of the table).
    """

    kind = "parquet"

    path: LocalPath
    image: str | None = None
    file: str | None = None
    root: LocalPath | None = None

    @property
    def place(self) -> Path:
        return text_path(self.path)

    def check(self) -> None:
        assert self._files

    @property
    def _files(self) -> list[Path]:
        return [file for file in tables.table_files(self.path) if file.suffix.lower() == ".parquet"]

    @cached_property
    def _base(self) -> Path:
        """The folder that the names of tables are relative to."""
        return self.place if self.place.is_dir() else Path(os.path.dirname(self.place))

    def _list(self, advance: Advance) -> Listing:
        rows: list[tuple[Any, ...]] = []
        seen: dict[str, int] = {}
        for file in self._files:
            try:
                schema, version = parquet.schema_of(file), version_of(file)
                tables.check_names(schema.names)
                name, by_path = self._column(schema, file)
                plain = [field.name for field in schema if not tables.has_bytes(field.type)]
                table = parquet.read(file, plain)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise UserError(
                    f"the table {file} cannot be read ({one_line(error)})", "fix the file"
                ) from None
            uris = self._paths(table, name, file, seen) if by_path else self._rows(file, schema, version)
            given = tables.given(table, (name,))
            rows += [(*ids, *rest) for ids, *rest in zip(uris, given, *stated_sizes(table), strict=True)]
            advance(table.num_rows)
        if not rows:
            raise UserError(f"{self.place} has no row", "name Parquet files of images")
        return Listing(self, items_table(rows, SCHEMA))

    def _column(self, schema: pa.Schema, file: Path) -> tuple[str, bool]:
        """The column of the images, and whether it has paths."""
        bytes_in = [field.name for field in schema if _is_image(field.type)]
        table = schema.empty_table()
        if self.file is not None:
            return tables.column_of(table, self.file, (), str(file), "it"), True
        if self.image is not None:
            name = tables.column_of(table, self.image, (), str(file), "it")
            if name not in bytes_in:
                raise UserError(
                    f"column {name} of {file} has no bytes", "name it with the option file, if paths"
                )
            return name, False
        usual = [name for name in bytes_in if name.casefold() in IMAGE_NAMES]
        if len(bytes_in) == 1 or usual:
            return (usual or bytes_in)[0], False
        try:
            return tables.column_of(
                table, None, FILE_NAMES, str(file), "it with the option image or file"
            ), True
        except UserError as error:
            urls = {name.casefold() for name in schema.names} & {"url", "image_url"}
            raise UserError(error.what, f"a table of URLs is urls:{file}" if urls else error.fix) from None

    def _rows(self, file: Path, schema: pa.Schema, version: str | None) -> Iterator[tuple[Any, ...]]:
        relative = os.path.relpath(file, self._base)
        for row in range(parquet.row_count(file)):
            yield uri_of(f"{relative}/{row:08d}"), f"row-{row}@{version}", None, None, None, None

    def _paths(
        self, table: pa.Table, name: str, file: Path, seen: dict[str, int]
    ) -> Iterator[tuple[Any, ...]]:
        for row, value in enumerate(table[name].to_pylist()):
            if not value:
                fault = "unreadable", "the table has no path in this row"
                yield f"{uri_of(os.path.relpath(file, self._base))}/{row:08d}", None, None, None, *fault
                continue
            full = os.path.normpath(os.path.join(self._root(file), str(value)))
            uri = uri_of(os.path.relpath(full, self._files_below))
            version = version_of(full)
            fault = (None, None) if version else ("unreadable", f"there is no file {full}")
            yield numbered(uri, seen), version, None, None, *fault

    def _root(self, file: Path) -> Path:
        return file.parent if self.root is None else text_path(self.root)

    @cached_property
    def _files_below(self) -> Path:
        """The folder that the uris of files are relative to."""
        return self._base if self.root is None else text_path(self.root)

    def open(self, item: Item) -> Blob:
        uri, version = item["uri"], item.get("source_version")
        head, _, row = uri.rpartition("/")
        if head.lower().endswith(".parquet") and row.isdigit():
            return self._bytes(path_of(self._base, head), int(row), version)
        return LocalBlob(str(self._files_below / unescaped(uri.partition("#")[0])), version)

    def _bytes(self, file: Path, row: int, version: str | None) -> Blob:
        now = version_of(file)
        if now is None or (version is not None and version.partition("@")[2] != now):
            what = "it was removed" if now is None else "its table is another one now"
            return FaultBlob(changed(what) if version else PixelFault("unreadable", f"there is no {file}"))
        try:
            data = self._reader(file, now).read(row)
        except (OSError, pa.ArrowException, UserError) as error:
            return FaultBlob(PixelFault("unreadable", f"the table cannot be read ({one_line(error)})"))
        if data is None:
            return FaultBlob(PixelFault("unreadable", "the table has no image in this row"))
        return MemoryBlob(data, version)

    def _reader(self, file: Path, version: str) -> _Rows:
        if (file, version) not in self._open:
            self._open.clear()
            name, _ = self._column(parquet.schema_of(file), file)
            self._open[file, version] = _Rows(file, name)
        return self._open[file, version]

    @cached_property
    def _open(self) -> dict[tuple[Path, str], _Rows]:
        """The table that this process reads."""
        return {}


class _Rows:
    """Reads single rows of a column of images, forward from the last one; keeps the last HELD bytes."""

    def __init__(self, file: Path, name: str) -> None:
        self._file, self._name = pq.ParquetFile(file), name
        self._starts = [0]
        for group in range(self._file.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
        # before the first row: nothing is read yet
        self._next, self._cells = -1, iter(())
        self._held: OrderedDict[int, bytes | None] = OrderedDict()
        self._bytes = 0

    def read(self, row: int) -> bytes | None:
        """The bytes of an image, or None. Raises OSError or ArrowException, and UserError for no such row."""
        if row in self._held:
            return self._held[row]
        if not 0 <= row < self._starts[-1]:
            raise UserError(f"it has {self._starts[-1]} rows")
        group = next(g for g in range(len(self._starts)) if self._starts[g + 1] > row)
        if not self._starts[group] <= self._next <= row:
            self._next, self._cells = self._starts[group], self._from(group)
        while self._next <= row:
            cell = next(self._cells)
            self._hold(self._next, cell)
            self._next += 1
        return self._held[row]

    def _from(self, group: int) -> Iterator[bytes | None]:
        # one row at a time: a group may have more bytes than the memory
        groups = list(range(group, self._file.num_row_groups))
        for batch in self._file.iter_batches(1, row_groups=groups, columns=[self._name]):
            value = batch.column(0)[0].as_py()
            yield value.get("bytes") if isinstance(value, dict) else value

    def _hold(self, row: int, cell: bytes | None) -> None:
        self._held[row] = cell
        self._bytes += len(cell or b"")
        while self._bytes > HELD and len(self._held) > 1:
            self._bytes -= len(self._held.popitem(last=False)[1] or b"")


def _is_image(kind: pa.DataType) -> bool:
    """Whether cells of this type are the bytes of an image, alone or in a struct as `bytes`."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and tables.is_bytes(kind.field(place).type)
    return tables.is_bytes(kind.value_type if pa.types.is_dictionary(kind) else kind)
