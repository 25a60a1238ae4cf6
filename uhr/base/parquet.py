"""Reads and writes Parquet through open files: libraries get no path that they could interpret.

DuckDB and pyarrow look for patterns, partitions (`license=cc0/`), schemes and UTF-8 in the paths that they
are given. An open file has none of these.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import mmap
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import pyarrow.dataset as ds


@contextlib.contextmanager
def opened(path: Path, **options: Any) -> Generator[pq.ParquetFile]:
    """Open a Parquet file for reading; `options` are those of `pyarrow.parquet.ParquetFile`."""
    with open(path, "rb") as file, pq.ParquetFile(file, **options) as parquet:
        yield parquet


@contextlib.contextmanager
def mapped(path: Path, **options: Any) -> Generator[pq.ParquetFile]:
    """Open a Parquet file for many small reads: it is mapped into memory, and reads do not copy."""
    with file_in(mapped_bytes(path), **options) as parquet:
        yield parquet


def file_in(data: pa.Buffer, **options: Any) -> pq.ParquetFile:
    """A Parquet file whose bytes are in memory; `options` as for `opened`. It need not be closed."""
    return pq.ParquetFile(pa.BufferReader(data), **options)


READ_AHEAD = 4 * 2**20
"""Bytes that `by_blocks` reads at once of each column."""


def by_blocks(file: IO[Any]) -> pq.ParquetFile:
    """Open a Parquet file whose rows are read one batch after the other, without more of it than that takes.

    With pre_buffer, the default, pyarrow reads all row groups to the end of the file before the first batch.
    """
    return pq.ParquetFile(file, buffer_size=READ_AHEAD, pre_buffer=False)


def row_batches(path: Path, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file in batches of at most `rows`; the others are not in memory."""
    with open(path, "rb") as file, by_blocks(file) as parquet:
        yield from parquet.iter_batches(rows)


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of a Parquet file; `columns` in the order given, all of them by default."""
    with opened(path) as file:
        table = file.read(columns=None if columns is None else list(columns))
    return table if columns is None else table.select(list(columns))


def schema_of(path: Path) -> pa.Schema:
    """The Arrow schema of a Parquet file, with its metadata."""
    with opened(path) as file:
        return file.schema_arrow


def row_count(path: Path) -> int:
    """Number of rows of a Parquet file."""
    with opened(path) as file:
        return file.metadata.num_rows


@contextlib.contextmanager
def writer(path: Path, schema: pa.Schema, **options: Any) -> Generator[pq.ParquetWriter]:
    """Open a new Parquet file for writing; `options` are those of `pyarrow.parquet.ParquetWriter`."""
    with open(path, "wb") as file, pq.ParquetWriter(file, schema, **options) as parquet:
        yield parquet


def write(path: Path, table: pa.Table, **options: Any) -> None:
    """Write a table as a Parquet file; `options` are those of `pyarrow.parquet.write_table`."""
    with open(path, "wb") as file:
        pq.write_table(table, file, **options)


def regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Cut the same rows into tables of exactly `rows`, each of one contiguous chunk; the last may be shorter.

    The result does not depend on how the rows are divided into tables.
    """
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        while count + table.num_rows >= rows:
            head = rows - count
            yield pa.concat_tables([*held, table.slice(0, head)]).combine_chunks()
            table, held, count = table.slice(head), [], 0
        if table.num_rows:
            held.append(table)
            count += table.num_rows
    if held:
        yield pa.concat_tables(held).combine_chunks()


@contextlib.contextmanager
def _without_pandas() -> Generator[None]:
    """Hide pandas from what this thread imports in the block: pyarrow.dataset asks whether it is there, and
    importing it takes 0.7 s. Nothing is hidden if it is imported already.
    """
    hidden = _Hidden(threading.get_ident())
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, hidden)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(hidden)


class _Hidden(importlib.abc.MetaPathFinder):
    """Says to one thread that there is no pandas."""

    def __init__(self, thread: int) -> None:
        self._thread = thread

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("hidden while pyarrow.dataset is imported", name=fullname)


@contextlib.contextmanager
def dataset(paths: Sequence[Path], schema: pa.Schema) -> Generator[ds.Dataset]:
    """Open Parquet files of one schema as one Arrow dataset, in their order, while the block runs.

    Two readers at a time disturb each other: a query must not read it in two branches of a union.
    """
    with contextlib.ExitStack() as files:
        with _without_pandas():
            import pyarrow.dataset as ds

        form = ds.ParquetFileFormat()
        fragments = [form.make_fragment(files.enter_context(open(path, "rb"))) for path in paths]
        yield ds.FileSystemDataset(fragments, schema, form)


Read = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
"""Yields the rows of a table in order, with these of its columns, in this order."""


def streamed(schema: pa.Schema, read: Read) -> ds.Dataset:
    """Return rows that have no files of their own as an Arrow dataset. `read` is called for each scan."""
    return _streamed_class()(schema, read)


@functools.cache
def _streamed_class() -> type[ds.Dataset]:
    with _without_pandas():
        import pyarrow.dataset as ds

    class Streamed(ds.Dataset):
        """What DuckDB uses of a dataset: its schema, and a scanner that gives a reader."""

        def __init__(self, schema: pa.Schema, read: Read) -> None:
            self._schema, self._read = schema, read

        @property
        def schema(self) -> pa.Schema:
            return self._schema

        def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **options: Any) -> Any:
            return _Scan(self._schema, self._read, columns, filter)

    class _Scan:
        def __init__(
            self, schema: pa.Schema, read: Read, columns: Sequence[str] | None, condition: Any
        ) -> None:
            self._columns = schema.names if columns is None else list(columns)
            self._read, self._condition = read, condition
            self.projected_schema = pa.schema([schema.field(name) for name in self._columns])
            # an expression does not tell its columns, but its text has their names
            text = "" if condition is None else str(condition)
            self._needed = [name for name in schema.names if name in self._columns or name in text]

        def to_reader(self) -> pa.RecordBatchReader:
            return pa.RecordBatchReader.from_batches(self.projected_schema, self._batches())

        def _batches(self) -> Iterator[pa.RecordBatch]:
            for batch in self._read(self._needed):
                if self._condition is None:
                    yield batch.select(self._columns)
                else:
                    rows = ds.InMemoryDataset(batch)
                    yield from rows.scanner(columns=self._columns, filter=self._condition).to_batches()

    return Streamed


def batches(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Open an Arrow IPC file for random access to its record batches, mapped into memory."""
    return pa.ipc.open_file(pa.BufferReader(mapped_bytes(path)))


def mapped_bytes(path: Path) -> pa.Buffer:
    """The bytes of a file, mapped into memory for as long as anything refers to them."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return pa.py_buffer(b"")  # which cannot be mapped
        return pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
