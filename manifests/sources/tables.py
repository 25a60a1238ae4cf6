"""Tables of items: Parquet, CSV, TSV, JSON lines, or a text with one value a line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from uhr.base import parquet
from uhr.base.errors import UserError, one_line, unknown
from uhr.base.paths import in_store, text_place
from uhr.base.store import ObjectStore
from uhr.manifests.sources.files import places
from uhr.manifests.sources.files.places import File

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")

LINE = "line"
"""The only column of a .txt file."""


def table_files(path: str, suffixes: Sequence[str] = SUFFIXES[:-1]) -> list[File]:
    """The tables that a path or an address, a folder or a pattern (`part-*.parquet`) names, sorted.

    Raises UserError if there is none. A text in a folder of tables is a licence or a description.
    """
    # an address with any of the suffixes is that of one object
    single = in_store(path) and path.lower().endswith(SUFFIXES)
    found = places.found(path, SUFFIXES if single else suffixes, "tables")
    if not found:
        raise UserError(
            f"there is no table at {text_place(path)}", f"name a file that ends with {' or '.join(SUFFIXES)}"
        )
    return found


@contextlib.contextmanager
def opened(path: str) -> Generator[Iterable[Path]]:
    """Yield the files of `table_files`. Of an address in an object store they are copies, each of which is
    removed when the next one is made.

    Raises UserError if there is none.
    """
    files = table_files(path)
    if not in_store(path):
        yield [Path(file.place) for file in files]
        return
    base = str(places.base_of(path, SUFFIXES))
    store = ObjectStore(base)
    with tempfile.TemporaryDirectory(prefix="uhr-tables-") as copies:

        def copied() -> Iterator[Path]:
            for each in files:
                # one at a time: the tables of a published set have gigabytes
                yield (file := store.fetch_into(Path(copies), str(each)[len(base) + 1 :]))
                file.unlink()

        try:
            yield copied()
        except UserError as error:
            raise UserError(error.what.replace(copies, base), error.fix) from None


def read_table(file: Path) -> pa.Table:
    """Read a table. The cells of CSV and TSV are texts; empty ones are null.

    Raises UserError if the file cannot be read, is not what its name ends with, or has two columns of one
    name.
    """
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            check_names(parquet.schema_of(file).names)
            return parquet.read(file)
        if suffix in SUFFIXES:
            text = decoded(file.read_bytes())
            if suffix == ".json":
                rows = json.loads(text)
                return rows_table(rows if isinstance(rows, list) else [rows])
            if suffix in (".jsonl", ".ndjson"):
                # not splitlines: a JSON text may contain other separators of lines, such as U+2028
                return rows_table([json.loads(line) for line in text.split("\n") if line.strip()])
            if suffix == ".txt":
                return pa.table({LINE: [line.strip() for line in text.splitlines() if line.strip()]})
            return csv_table(text, "\t" if suffix == ".tsv" else ",")
    except (OSError, ValueError, pa.ArrowException, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise UserError(f"the table {file} cannot be read ({why})", "fix the file") from None
    except RecursionError:
        raise UserError(f"the table {file} cannot be read (nested too deeply)", "fix the file") from None
    raise UserError(f"{file} is not a table", f"name a file that ends with {' or '.join(SUFFIXES)}")


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError if two columns have the same name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"it has two columns {twice[0]!r}")


def decoded(data: bytes) -> str:
    """Decode UTF-8, or what a byte order mark announces. Raises ValueError if it is neither."""
    marks = ((b"\xff\xfe\0\0", 32), (b"\0\0\xfe\xff", 32), (b"\xff\xfe", 16), (b"\xfe\xff", 16))
    bits = next((bits for mark, bits in marks if data.startswith(mark)), 8)
    try:
        return data.decode("utf-8-sig" if bits == 8 else f"utf-{bits}")
    except UnicodeDecodeError:
        raise ValueError(f"not UTF-{bits}") from None


def csv_table(text: str, delimiter: str) -> pa.Table:
    """Make a table of texts of a CSV with a line of names; empty cells are null."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names = next(reader, None)
    if not names:
        raise ValueError("it has no line of column names")
    check_names(names)
    rows = []
    for row in reader:
        if len(row) not in (0, len(names)):
            raise ValueError(f"line {reader.line_num} has {len(row)} cells, and the first has {len(names)}")
        if row:
            rows.append([cell or None for cell in row])
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return pa.table([pa.array(column, pa.string()) for column in columns], names=names)


def rows_table(rows: Sequence[Any]) -> pa.Table:
    """Make a table of JSON objects; a value that is not a text or a number becomes JSON text."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"object {number} is a JSON {type(row).__name__}, not an object")  # noqa: TRY004 - one kind for all
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        cells = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(cells)
        except (pa.ArrowException, OverflowError):
            columns[name] = pa.array([None if cell is None else json.dumps(cell) for cell in cells])
    return pa.table(columns)


def column_of(table: pa.Table, wanted: str | None, usual: Sequence[str], where: str, what: str) -> str:
    """The column that an option names, or else the first of the `usual` names, whatever their letter case.

    Raises UserError if there is no such column.
    """
    if wanted is not None:
        if wanted not in table.schema.names:
            raise unknown("column", wanted, table.schema.names, where)
        return wanted
    by_folded = {name.casefold(): name for name in reversed(table.schema.names)}
    for name in usual:
        if name in by_folded:
            return by_folded[name]
    raise UserError(
        f"{where} has no column {' or '.join(usual)} ({', '.join(table.schema.names)})", f"name {what}"
    )


def given(table: pa.Table, without: Sequence[str]) -> Iterator[str | None]:
    """Yield each row's values as one JSON object, without nulls, bytes and the columns `without`; None where
    nothing is left."""
    kept = [field.name for field in table.schema if field.name not in without and not has_bytes(field.type)]
    if not kept:
        yield from [None] * table.num_rows
        return
    for batch in table.select(kept).to_batches():
        for row in batch.to_pylist():
            yield as_given(row)


def as_given(row: Mapping[str, Any]) -> str | None:
    """Return a row as one JSON object without nulls and NaN, which is how pandas writes a missing value; None
    if nothing is left.
    """
    left = {n: v for n, v in row.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}
    return json.dumps(left, ensure_ascii=False, default=str) if left else None


def has_bytes(kind: pa.DataType) -> bool:
    """Whether cells of this type are bytes, or have bytes in them."""
    if pa.types.is_nested(kind):
        return any(has_bytes(kind.field(place).type) for place in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        return has_bytes(kind.value_type)
    return is_bytes(kind) or pa.types.is_fixed_size_binary(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether cells of this type are bytes of any number."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def whole_numbers(column: pa.ChunkedArray) -> list[int | None]:
    """The values of a column as sizes in px; null where one is none."""
    return [whole_number(value) for value in column.to_pylist()]


def whole_number(value: Any) -> int | None:
    """A value as a size in px; None if it is none."""
    try:
        number = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 < number < 2**31 else None


FILE_NAME = "file_name"
"""The column of the table that `datasets` calls the metadata of an ImageFolder: a path from its folder."""

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def add_by_key(values: dict[str, str], table: pa.Table, key: str) -> int:
    """Add the other values of each row as JSON text, by the text of its column `key`. Of rows with the same
    key, the last one counts. Returns the number of rows whose place another one with other values took.
    """
    replaced = 0
    texts = (str(value) for value in table[key].to_pylist())
    for text, row in zip(texts, given(table, (key,)), strict=True):
        if row is not None:
            replaced += values.get(text, row) != row
            values[text] = row
    return replaced
