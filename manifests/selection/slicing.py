"""Slice a manifest: write the rows that `select` finds as a manifest of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from uhr.base.config import build
from uhr.base.console import Advance
from uhr.base.errors import UserError
from uhr.manifests import places
from uhr.manifests.info import Parent, Part
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import GROUP_ROWS
from uhr.manifests.schema import COLUMNS
from uhr.manifests.selection.embeddings import unit_vector, vector_hash
from uhr.manifests.selection.options import SliceOptions, Top
from uhr.manifests.selection.reference import POSITION, stored_schema, with_columns
from uhr.manifests.selection.select import Selection, select
from uhr.manifests.sql import SqlCondition
from uhr.manifests.writer import Provenance, write_manifest

SPLIT = COLUMNS["split"]


@dataclass(frozen=True, eq=False)
class Slice:
    """A slice in Python: each method returns a new one with a further step, and nothing is read before
    `select`, `count`, `table` or `write`. Made by `uhr.manifests.open`.

    The steps are applied in their fixed order (`select.py`), whatever the order of the calls.
    """

    parent: Manifest
    options: SliceOptions = field(default_factory=SliceOptions)
    query: np.ndarray | None = None

    def status(self, status: str) -> Slice:
        """Take rows of this status: kept (the default), rejected, failed or any."""
        return self._with(status=status)

    def where(self, condition: str) -> Slice:
        """Take rows for which this SQL condition is true, and those of earlier calls too."""
        SqlCondition.parse(condition, "where")  # alone: "a) OR (b" would be a condition once it is joined
        before = self.options.where
        return self._with(where=condition if before is None else f"({before}) AND ({condition})")

    def similar(self, to: str | np.ndarray, rows: int, embedding: str = "clip_embedding") -> Slice:
        """Take the rows whose embeddings are nearest to a sample (an id or a uri) or a vector [D]."""
        if isinstance(to, str):
            return self._with(similar={"to": to, "rows": rows}, embedding=embedding)
        unit = unit_vector(to, "the query")
        similar = {"to": "a vector", "rows": rows, "vector": vector_hash(unit)}
        return replace(self._with(similar=similar, embedding=embedding), query=unit)

    def diverse(self, rows: int, embedding: str = "clip_embedding") -> Slice:
        """Take rows that cover the others by their embeddings (`embeddings.covering`)."""
        return self._with(diverse=rows, embedding=embedding)

    def top(
        self, by: str, *, rows: int | None = None, share: float | None = None, per: Sequence[str] = ()
    ) -> Slice:
        """Take the rows with the highest values of `by`: give `rows`, or the `share` in (0, 1]."""
        top = build(Top, {"by": by, "rows": rows, "share": share, "per": tuple(per)}, f"top of {by}")
        return self._with(top=(*(self.options.top or ()), top))

    def stratify(self, *columns: str) -> Slice:
        """Draw the sample so that each combination of these columns keeps its share."""
        return self._with(stratify=columns)

    def balance(self, column: str) -> Slice:
        """Draw equally many rows of each value of this column."""
        return self._with(balance=column)

    def sample(self, rows: int) -> Slice:
        """Draw this many rows."""
        return self._with(sample=rows)

    def split(self, **shares: float) -> Slice:
        """Add a column `split`: `split(train=0.98, val=0.02)`."""
        return self._with(split=shares)

    def materialise(self, what: str) -> Slice:
        """Write rows (the default), also the pixels, or none: a slice by reference."""
        return self._with(materialise=what)

    def seed(self, seed: int) -> Slice:
        """Draw with this seed; 0 by default."""
        return self._with(seed=seed)

    def select(self) -> Selection:
        """Return the selected rows by position and id."""
        return select(self.parent, self.options, self.query)

    def count(self) -> int:
        """Return the number of selected rows."""
        return len(self.select().positions)

    def table(self) -> pa.Table:
        """Return the selected rows, with their split."""
        selection = self.select()
        schema = _schema(self.parent, selection)
        return pa.Table.from_batches(_batches(self.parent, schema, selection), schema)

    def write(self, out: Path | str) -> Manifest:
        """Write the selected rows as a manifest, as `slice_manifest`."""
        return slice_manifest(self.parent, out, self.options, query=self.query)

    def _with(self, **steps: Any) -> Slice:
        options = build(SliceOptions, {**self.options.model_dump(), **steps}, "slice")
        return replace(self, options=options)


def _no_advance(n: int = 1, note: str | None = None) -> None:
    pass


def slice_manifest(
    parent: Manifest,
    out: Path | str,
    options: SliceOptions,
    advance: Advance = _no_advance,
    query: np.ndarray | None = None,
) -> Manifest:
    """Write a slice of `parent` to `out`, a folder or an address. `query` is that of `select`.

    Its readers find all columns, the previews of its rows, the parent's stages, rules and weights, and a
    reference to the parent, whatever `options.materialise` is.

    Raises UserError as `select` does, if `out` is inside a manifest or contains anything but the leftovers of
    a slice that was killed, and if pixels are to be stored that cannot be read.
    """
    selection = select(parent, options, query)
    with places.output(out) as folder:
        _write(folder, parent, options, selection, advance)
    return Manifest.open(out)


def _write(
    folder: Path, parent: Manifest, options: SliceOptions, selection: Selection, advance: Advance
) -> None:
    schema = _schema(parent, selection)
    provenance = Provenance.derived(
        parent,
        options.operation(),
        [Parent(id=parent.id, path=places.place_of(parent.path), role="slice of")],
        attachments=_pixels(folder, parent, selection) if options.materialise == "pixels" else (),
    )
    if options.materialise == "none":
        rows = _references(parent, selection, advance)
        write_manifest(folder, stored_schema(_added(selection)), rows, provenance, parent=parent)
        return
    shown = bool(parent.with_previews.info.previews)
    previews = parent.preview_batches(selection.ids.to_pylist()) if shown else None
    write_manifest(folder, schema, _batches(parent, schema, selection, advance), provenance, previews)


def _pixels(folder: Path, parent: Manifest, selection: Selection) -> list[Part]:
    """Store the original bytes of the rows. Raises UserError if those of a row cannot be had."""
    from uhr.manifests.sources.stored import write_pixels  # imports the decoders

    known = ("uri", "source_version", "source_name", "status", "content_hash")
    names = [name for name in known if name in parent.schema.names]
    hashless = sum(
        batch.column("content_hash").null_count
        for batch in parent.take(selection.positions, columns=["content_hash"])
    )
    if hashless:
        raise UserError(
            f"--materialise pixels: {hashless:,} rows have no content_hash, as only their header was read",
            "slice with --where 'content_hash IS NOT NULL'",
        )
    batches = parent.take(selection.positions, columns=names)
    written = write_pixels(folder, batches, parent.source, everything=True, advance=_no_advance)
    if written.lost:
        raise UserError(
            f"--materialise pixels: {written.lost:,} images cannot be read, or have changed",
            f"see 'uhr manifest verify --pixels {parent.name}'",
        )
    return written.parts


def _schema(parent: Manifest, selection: Selection) -> pa.Schema:
    """Return the parent's schema; with a split, that column is the last."""
    return with_columns(parent.schema, _added(selection))


def _added(selection: Selection) -> list[pa.Field]:
    return [] if selection.splits is None else [SPLIT.field()]


def _references(parent: Manifest, selection: Selection, advance: Advance) -> Iterator[pa.RecordBatch]:
    """Yield the rows as the parts of a slice by reference have them."""
    columns = [selection.ids.combine_chunks(), pa.array(selection.positions)]
    columns += [] if selection.splits is None else [selection.splits]
    rows = pa.table(columns, schema=stored_schema(_added(selection)))
    passed = 0
    for batch in rows.to_batches(max_chunksize=GROUP_ROWS):
        yield batch
        end = batch.column(POSITION.name)[-1].as_py() + 1
        advance(end - passed)
        passed = end
    advance(parent.info.counts["rows"] - passed)


def _batches(
    parent: Manifest, schema: pa.Schema, selection: Selection, advance: Advance = _no_advance
) -> Iterator[pa.RecordBatch]:
    """Yield the selected rows with their split."""
    start = 0
    for batch in parent.take(selection.positions, advance):
        here = slice(start, start + batch.num_rows)
        same = selection.ids.slice(start, batch.num_rows).equals(
            pa.chunked_array([batch.column("sample_id")])
        )
        assert same, "the query gave the rows in another order than the parts have them"
        if selection.splits is not None:
            if SPLIT.name in batch.schema.names:
                batch = batch.drop_columns([SPLIT.name])
            batch = pa.RecordBatch.from_arrays([*batch.columns, selection.splits[here]], schema=schema)
        yield batch
        start = here.stop
