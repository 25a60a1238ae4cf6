"""Manifests by reference: rows of a parent, named by sample id and position, with columns of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from uhr.base import parquet
from uhr.base.console import progress
from uhr.base.errors import UserError
from uhr.manifests import places
from uhr.manifests.info import ManifestInfo
from uhr.manifests.lineage import look_for
from uhr.manifests.parts import GROUP_ROWS
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
    place, why = look_for(path, recorded)
    if place is None:
        raise UserError(
            f"{places.place_of(path)} is by reference, and its parent {recorded.id[:16]} is not at "
            f"{recorded.path}{f', which {why}' if why else ''}",
            "make it readable there" if why else "put the parent back there, or next to it",
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
    """Return the schema of the parts of a manifest by reference that adds these columns. Raises UserError if
    one of them has the name of a key.
    """
    fields = [*(column.field() for column in KEYS), *added]
    if len({field.name for field in fields}) < len(fields):
        keys = " or ".join(column.name for column in KEYS)
        raise UserError(f"a manifest by reference cannot add a column {keys}", "write it with all its rows")
    return pa.schema(fields)


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
    rows = rows.drop_columns([POSITION.name])  # the parent may have a column of this name
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


def placed(
    parent: Manifest, batches: Iterable[pa.RecordBatch], name: str
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Yield the batches, each with the positions of its rows in the parent, by sample id: int64 [rows].

    The rows are in the order of the parent. name: of their manifest, for errors. Raises UserError if the
    parent does not have a row.
    """
    chunks = parent.rows(["sample_id"])
    chunk, start = next(chunks, None), 0
    for batch in batches:
        left, found = batch.column("sample_id"), []
        while chunk is not None:
            # of rows in one order, those that a chunk has come first
            at = pc.call_function("index_in", [left], pc.SetLookupOptions(chunk.column(0)))
            here = len(at) - at.null_count
            found.append(at.slice(0, here).fill_null(-1).to_numpy() + start)
            left = left.slice(here)
            if not len(left):
                break
            start += chunk.num_rows
            chunk = next(chunks, None)
        positions = np.concatenate([np.empty(0, np.int64), *found])
        if len(left) or (len(positions) and positions.min() < 0):
            raise UserError(
                f"{name} has rows that its parent {parent.name} does not have",
                "remove it, and make it anew with rows of its own",
            )
        yield batch, positions


def of_parent(
    parent: Manifest, schema: pa.Schema, batches: Callable[[], Iterator[pa.RecordBatch]], name: str
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return rows of a parent as the parts of a manifest by reference have them, and their schema: without
    the columns that have the same values there.

    batches: yields the rows, with the columns of `schema`, each time it is called. name, errors: as of
    `placed`.
    """

    def rows() -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        tables = (pa.Table.from_batches([batch]).select(schema.names) for batch in batches())
        regrouped = (table.cast(schema) for table in parquet.regrouped(tables, GROUP_ROWS))
        return placed(parent, (batch for table in regrouped for batch in table.to_batches()), name)

    same = [f.name for f in schema if f.name != "sample_id" and f.name in parent.schema.names]
    same = [n for n in same if schema.field(n).equals(parent.schema.field(n), check_metadata=True)]
    with progress("compare", None, "rows") as advance:
        for batch, positions in rows():
            theirs = list(parent.take(positions, columns=same))
            same = [
                n
                for n in same
                if pa.chunked_array([batch.column(n)]).equals(
                    pa.chunked_array([t.column(n) for t in theirs], schema.field(n).type)
                )
            ]
            advance(batch.num_rows)
    kept = stored_schema(f for f in schema if f.name not in ("sample_id", *same))
    names = [field.name for field in own_fields(kept)]

    def stored() -> Iterator[pa.RecordBatch]:
        for batch, positions in rows():
            columns = [batch.column("sample_id"), pa.array(positions), *(batch.column(n) for n in names)]
            yield pa.RecordBatch.from_arrays(columns, schema=kept)

    return kept, stored()
