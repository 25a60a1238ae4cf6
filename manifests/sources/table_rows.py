"""Sources whose items are the rows of a table: a data set, a list of URLs, Parquet files with images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from uhr.base.paths import in_store
from uhr.manifests.schema import STATED, Column
from uhr.manifests.sources import tables
from uhr.manifests.sources.base import GIVEN, ITEMS, Source

SCHEMA = pa.schema([*ITEMS, GIVEN, *(column.field() for column in STATED)])
"""The columns of a listing: the item, the row's other values as JSON, and the size in px that it states."""


class TableRows(Source):
    """A source of rows. Their other columns go into the manifest as those of a JSON sidecar, and the sizes in
    `width` and `height` as `stated_width` and `stated_height`.
    """

    @property
    def columns(self) -> tuple[Column, ...]:
        return (*STATED, *super().columns)

    @property
    def local_paths(self) -> Sequence[Path]:
        folder = Path(self.place)
        return (folder,) if not in_store(self.place) and folder.is_dir() else ()

    @property
    def addresses(self) -> Sequence[str]:
        return (self.place,) if in_store(self.place) else ()


def stated_sizes(
    table: pa.Table, width: str | None = None, height: str | None = None, where: str = ""
) -> tuple[list[int | None], list[int | None]]:
    """Return the width and the height in px that each row of a table states; None where it states none.

    width, height: the columns; by default `width` and `height`, or else `original_width` and
    `original_height`, whatever their letter case. where: the table's name in messages.

    Raises UserError if a column that is named does not exist.
    """
    return _sizes(table, "width", width, where), _sizes(table, "height", height, where)


def _sizes(table: pa.Table, side: str, named: str | None, where: str) -> list[int | None]:
    usual = (side, f"original_{side}")
    if named is None and not {name.casefold() for name in table.schema.names}.intersection(usual):
        return [None] * table.num_rows
    return tables.whole_numbers(table[tables.column_of(table, named, usual, where, "it")])
