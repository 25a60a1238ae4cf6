"""Tables in the folders of a source that state values of its files, as `datasets` has them in an ImageFolder.

A table called as one of METADATA, in any folder, names files in its column FILE_NAME.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa

from uhr.base.errors import UserError
from uhr.base.paths import unescaped
from uhr.base.store import StoreError
from uhr.manifests.sources import tables
from uhr.manifests.sources.base import items_table, with_given
from uhr.manifests.uris import uri_of

Row = tuple[str, str | None, list[str] | None, str | None, str | None, str | None]
"""An item, in the order of `ITEMS`."""


class Values(NamedTuple):
    """The rows without those of the tables, the values of each file by its uri as JSON, and the numbers of
    rows of tables without a file and of those that another row for the same file replaced.
    """

    rows: list[Row]
    given: dict[str, str]
    unmatched: int
    replaced: int

    def items(self) -> pa.Table:
        """The items of the listing."""
        items = items_table(self.rows)
        return with_given(items, map(self.given.get, items["uri"].to_pylist())) if self.given else items

    @property
    def counts(self) -> dict[str, int]:
        """What `Listing.not_opened` counts of them."""
        found = {"unmatched_rows": self.unmatched, "replaced_rows": self.replaced}
        return {name: count for name, count in found.items() if count}


def of_rows(rows: Sequence[Row], read: Callable[[str], pa.Table]) -> Values:
    """Read the tables among these rows by their uri. One that cannot be read stays a row, with the fault.

    Raises StoreError if their bucket fails.
    """
    found: dict[str, str] = {}
    replaced = 0
    left: list[Row] = []
    for row in rows:
        folder, slash, name = row[0].rpartition("/")
        if name not in tables.METADATA or row[4] is not None:
            left.append(row)
            continue
        try:
            table = read(row[0])
        except StoreError:
            raise
        except UserError as error:
            left.append((*row[:4], "unreadable", error.what))
            continue
        if tables.FILE_NAME not in table.schema.names:
            left.append(row)
            continue
        named: dict[str, str] = {}
        replaced += tables.add_by_key(named, table, tables.FILE_NAME)
        for file, values in named.items():
            found[uri_of(posixpath.normpath(f"{unescaped(folder)}{slash}{file}"))] = values
    if not found:
        return Values(left, {}, 0, 0)
    return Values(left, found, len(found.keys() - {row[0] for row in left}), replaced)
