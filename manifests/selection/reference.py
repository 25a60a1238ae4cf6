"""Manifests by reference: rows of a parent, named by sample id and position, with columns of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from uhr.base.errors import UserError
from uhr.manifests import places
from uhr.manifests.info import ManifestInfo
from uhr.manifests.lineage import find_parent
from uhr.manifests.schema import COLUMNS, Column

if TYPE_CHECKING:
    from uhr.manifests.manifest import Manifest

POSITION = Column("position", pa.int64(), "number of the row in the parent, from 0")

KEYS = (COLUMNS["sample_id"], POSITION)
"""The columns that the parts of every manifest by reference have."""


def parent_of(path: Path, info: ManifestInfo, open_parent: Callable[[Path | str], Manifest]) -> Manifest:
    """Open the parent of a manifest by reference. Raises UserError if it is not found, or if samples of it
    were forgotten since: its rows have other positions then.
    """
    recorded = info.parents[0]
    place = find_parent(path, recorded)
    if place is None:
        raise UserError(
            f"{places.place_of(path)} is by reference, and its parent {recorded.id[:16]} is not at "
            f"{recorded.path}",
            "put the parent back there, or next to it",
        )
    parent = open_parent(place)
    if parent.id != recorded.id:
        raise UserError(
            f"{places.shown(path)} refers to rows that its parent {parent.name} had before samples were "
            "forgotten",
            "make it anew from its parent",
        )
    return parent


def own_fields(stored: pa.Schema) -> list[pa.Field]:
    """Return the columns of the parts of a manifest by reference besides the keys: those that it adds."""
    keys = {column.name for column in KEYS}
    return [field for field in stored if field.name not in keys]


def stored_schema(added: Iterable[pa.Field]) -> pa.Schema:
    """Return the schema of the parts of a manifest by reference that adds these columns."""
    return pa.schema([*(column.field() for column in KEYS), *added])


def with_columns(schema: pa.Schema, added: Sequence[pa.Field]) -> pa.Schema:
    """Return the schema with these columns last; one that it has is replaced."""
    names = {field.name for field in added}
    return pa.schema([*(field for field in schema if field.name not in names), *added])


def joined(rows: pa.Table, parent: Manifest, columns: Sequence[str], name: str) -> pa.Table:
    """Return rows of the parts of the manifest `name` with these columns of its parent.

    rows: with the column `position`. Raises UserError if the parent does not have the rows.
    """
    positions = rows[POSITION.name].to_numpy()
    schema = pa.schema([parent.schema.field(column) for column in columns])
    inherited = pa.Table.from_batches(parent.take(positions, columns=columns), schema)
    if inherited.num_rows != rows.num_rows:
        raise UserError(
            f"{name} refers to rows that its parent {parent.name} does not have",
            f"see 'uhr manifest verify {name}', or make it anew",
        )
    for field in schema:
        rows = rows.append_column(field, inherited[field.name])
    return rows


Values = Callable[[pa.RecordBatch], Sequence[pa.Array]]
"""Returns the columns that are added to rows, for a batch of these."""


def with_added(
    manifest: Manifest, added: Sequence[pa.Field], values: Values, *, by_reference: bool
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return all rows of a manifest with added or replaced columns, and their schema, for `write_manifest`.

    values: of a batch of the rows, with at least `sample_id` and those of the columns that they have already.
    by_reference: whether the rows are those of a manifest by reference, without the columns of this one.
    """
    schema = stored_schema(added) if by_reference else with_columns(manifest.schema, added)
    return schema, _added(manifest, schema, [field.name for field in added], values, by_reference)


def _added(
    manifest: Manifest, schema: pa.Schema, names: Sequence[str], values: Values, by_reference: bool
) -> Iterator[pa.RecordBatch]:
    known = ["sample_id", *(name for name in names if name in manifest.schema.names)]
    start = 0
    for batch in manifest.rows(known if by_reference else None):
        new = dict(zip(names, values(batch), strict=True))
        if by_reference:
            positions = pa.array(np.arange(start, start + batch.num_rows))
            columns = [batch.column("sample_id"), positions, *new.values()]
        else:
            columns = [new[n] if n in new else batch.column(n) for n in schema.names]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
        start += batch.num_rows
