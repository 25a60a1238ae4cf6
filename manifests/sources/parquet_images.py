"""Parquet tables of images as a source: image bytes in a column, or paths of files, here or in a bucket."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from uhr.base import parquet
from uhr.base.errors import UserError, one_line
from uhr.base.paths import in_store, text_place, unescaped
from uhr.base.store import StoreError
from uhr.manifests.sources import tables
from uhr.manifests.sources.base import Advance, AnyPlace, Item, Listing, items_table, numbered, unnumbered
from uhr.manifests.sources.blobs import Blob, FaultBlob, MemoryBlob
from uhr.manifests.sources.files import places
from uhr.manifests.sources.files.places import File
from uhr.manifests.sources.table_rows import SCHEMA, TableRows, stated_sizes
from uhr.pixels.files import changed
from uhr.pixels.types import PixelFault

SUFFIX = ".parquet"

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
FILE_NAMES = ("file_name", "path", "image_path", "file", "filename", "filepath")

HELD = 256 * 2**20
"""Bytes of images that a process keeps, because a unit of images is read once for each group of stages."""


_READING = threading.Lock()
"""Held while a row is read: the rows of a table are read in turn, by whichever thread."""


class ParquetImages(TableRows):
    """Rows of Parquet files, each with an image: its bytes, alone or in the struct of `datasets.Image`, or
    the path of its file. The other columns go into the rows as those of a JSON sidecar.

    path: a file, a folder or a pattern, also in a bucket. image: the column of the bytes. file: the column of
    the paths, which are relative to `root` (by default to the folder or prefix of the table), or addresses
    (`s3://bucket/name`).
    """

    kind = "parquet"

    path: AnyPlace
    image: str | None = None
    file: str | None = None
    root: AnyPlace | None = None

    @property
    def place(self) -> Path | str:
        return text_place(self.path)

    def lane(self, item: Item) -> str | None:
        return places.lane_of(self._file(item["uri"])[0].place)

    def check(self) -> None:
        _ = self._files

    @property
    def _files(self) -> list[File]:
        files = [f for f in tables.table_files(self.path, (SUFFIX,)) if f.name.lower().endswith(SUFFIX)]
        if not files:
            raise UserError(f"{self.place} is no Parquet file", f"name a file that ends with {SUFFIX}")
        return files

    @cached_property
    def _base(self) -> Path | str:
        """The folder or prefix that the names of tables are relative to."""
        return places.base_of(self.path, (SUFFIX,))

    def _list(self, advance: Advance) -> Listing:
        rows: list[tuple[Any, ...]] = []
        seen: dict[str, int] = {}
        for file in self._files:
            try:
                version = file.version()
                with file.opened(version) as raw:
                    made = self._rows_of(file, version, raw, seen)
            except PixelFault as fault:
                what = fault.message if fault.kind == "unavailable" else f"{file}: {fault.message}"
                raise UserError(f"cannot read the table {what}", "repeat the command later") from None
            except (OSError, ValueError, pa.ArrowException) as error:
                raise UserError(
                    f"the table {file} cannot be read ({one_line(error)})", "fix the file"
                ) from None
            rows += made
            advance(len(made))
        if not rows:
            raise UserError(f"{self.place} has no row", "name Parquet files of images")
        return Listing(self, items_table(rows, SCHEMA))

    def _rows_of(self, file: File, version: str, raw: IO[Any], seen: dict[str, int]) -> list[tuple[Any, ...]]:
        # columns that are near each other in the file are one request
        with pq.ParquetFile(raw, pre_buffer=True) as opened:
            schema = opened.schema_arrow
            tables.check_names(schema.names)
            name, by_path = self._column(schema, file)
            plain = [field.name for field in schema if not tables.has_bytes(field.type)]
            table = opened.read(columns=plain).select(plain)
        uris = self._paths(table, name, file, seen) if by_path else self._rows(file, table.num_rows, version)
        given = tables.given(table, (name,))
        return [(*ids, *rest) for ids, *rest in zip(uris, given, *stated_sizes(table), strict=True)]

    def _column(self, schema: pa.Schema, file: File) -> tuple[str, bool]:
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

    def _rows(self, file: File, count: int, version: str) -> Iterator[tuple[Any, ...]]:
        relative = places.relative(file.place, self._base)
        for row in range(count):
            yield f"{relative}/{row:08d}", f"row-{row}@{version}", None, None, None, None

    def _paths(
        self, table: pa.Table, name: str, file: File, seen: dict[str, int]
    ) -> Iterator[tuple[Any, ...]]:
        root = self._root(file)
        named: list[Path | str | None] = []
        wrong: dict[int, str] = {}
        for row, value in enumerate(table[name].to_pylist()):
            try:
                named.append(places.joined(root, str(value)) if value else None)
            except ValueError as error:
                named.append(None)
                wrong[row] = str(error)
        versions = places.versions_of([place for place in named if place is not None])
        for row, place in enumerate(named):
            if place is None:
                fault = "unreadable", wrong.get(row, "the table has no path in this row")
                yield f"{places.relative(file.place, self._base)}/{row:08d}", None, None, None, *fault
                continue
            version = versions.get(place)
            fault = (None, None) if version else ("unreadable", f"there is no file {place}")
            uri = places.relative(place, self._files_below)
            if (name := unnumbered(uri)) != uri:
                uri = f"{name}%23{uri[len(name) + 1 :]}"  # that of a file called `a.jpg#2`
            yield numbered(uri, seen), version, None, None, *fault

    def _root(self, file: File) -> Path | str:
        if self.root is not None:
            return text_place(self.root)
        return file.place.rpartition("/")[0] if isinstance(file.place, str) else file.place.parent

    @cached_property
    def _files_below(self) -> Path | str:
        """The folder or prefix that the uris of files are relative to."""
        return self._base if self.root is None else text_place(self.root)

    def _file(self, uri: str) -> tuple[File, int | None]:
        """The file that has the bytes of an item: a table, and the number of the row in it, or an image."""
        head, _, row = uri.rpartition("/")
        if head.lower().endswith(SUFFIX) and row.isdigit():
            return places.below(self._base, head), int(row)
        uri = unnumbered(uri)
        name = unescaped(uri)
        if in_store(name):
            return places.file_at(name), None
        if in_store(self._files_below):
            return places.below(self._files_below, uri), None
        return places.file_at(Path(self._files_below) / name), None

    def open(self, item: Item) -> Blob:
        version = item.get("source_version")
        file, row = self._file(item["uri"])
        return file.blob(version) if row is None else self._bytes(file, row, version)

    def _bytes(self, file: File, row: int, version: str | None) -> Blob:
        listed = None if version is None else version.partition("@")[2]
        try:
            with _READING:
                data = self._reader(file, listed).read(row)
        except FileNotFoundError:
            what = PixelFault("unreadable", f"there is no {file}")
            return FaultBlob(changed("it was removed") if version else what)
        except _Replaced:
            return FaultBlob(changed("its table is another one now"))
        except PixelFault as fault:
            return FaultBlob(fault)
        except StoreError as error:
            return FaultBlob(PixelFault("unavailable", error.what))
        except (OSError, pa.ArrowException, UserError) as error:
            return FaultBlob(PixelFault("unreadable", f"the table cannot be read ({one_line(error)})"))
        if data is None:
            return FaultBlob(PixelFault("unreadable", "the table has no image in this row"))
        return MemoryBlob(data, version)

    def _reader(self, file: File, listed: str | None) -> _Rows:
        """The rows of a table as it was listed, or as it is. Raises _Replaced if it is another one now."""
        # requests to a bucket are for the listed version: another one is a fault of theirs
        version = listed if listed is not None and in_store(file.place) else file.version()
        if listed not in (None, version):
            raise _Replaced
        key = str(file), version
        if key not in self._open:
            self._open.clear()
            self._open[key] = _Rows(file, version, self._column)
        return self._open[key]

    @cached_property
    def _open(self) -> dict[tuple[str, str], _Rows]:
        """The table that this process reads."""
        return {}


class _Replaced(Exception):
    """A table has another version than when it was listed."""


class _Rows:
    """Reads single rows of a column of images, forward from the last one; keeps the last HELD bytes."""

    def __init__(
        self, file: File, version: str, column: Callable[[pa.Schema, File], tuple[str, bool]]
    ) -> None:
        self._file = parquet.by_blocks(file.opened(version))
        self._name, _ = column(self._file.schema_arrow, file)
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
            at, self._next = self._next, -1  # if this fails, the next call begins anew
            self._hold(at, next(self._cells))
            self._next = at + 1
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
