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
from uhr.base.files import saving
from uhr.base.paths import path_text
from uhr.base.run_folder import RunFolder, all_or_nothing
from uhr.manifests.info import Parent, check_outside_manifests
from uhr.manifests.manifest import Manifest
from uhr.manifests.parts import LAYOUT
from uhr.manifests.schema import COLUMNS
from uhr.manifests.selection.embeddings import unit_vector, vector_hash
from uhr.manifests.selection.options import SliceOptions, Top
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
        return slice_manifest(self.parent, Path(out), self.options, query=self.query)

    def _with(self, **steps: Any) -> Slice:
        options = build(SliceOptions, {**self.options.model_dump(), **steps}, "slice")
        return replace(self, options=options)


def _no_advance(n: int = 1, note: str | None = None) -> None:
    pass


def slice_manifest(
    parent: Manifest,
    out: Path,
    options: SliceOptions,
    advance: Advance = _no_advance,
    query: np.ndarray | None = None,
) -> Manifest:
    """Write a slice of `parent` to `out`. `query` is that of `select`.

    It has all columns, the previews of its rows, the parent's stages, rules and weights, and a reference to
    the parent.

    Raises UserError as `select` does, and if `out` is inside a manifest or contains anything but the
    leftovers of a slice that was killed.
    """
    selection = select(parent, options, query)
    schema = _schema(parent, selection)
    fix = "free space there, then repeat the command"
    with saving(out, fix), all_or_nothing(Path(out)):
        check_outside_manifests(out)
        RunFolder(out, LAYOUT).claim()
        provenance = Provenance(
            root=parent.root,
            origin=parent.origin,
            operation=options.operation(),
            parents=[Parent(id=parent.id, path=path_text(parent.path.resolve()), role="slice of")],
            stages=parent.info.stages,
            rules=parent.info.rules,
            weights=parent.info.weights,
            files=parent.info.files,
        )
        batches = _batches(parent, schema, selection, advance)
        previews = parent.preview_batches(selection.ids.to_pylist()) if parent.info.previews else None
        return write_manifest(out, schema, batches, provenance, previews)


def _schema(parent: Manifest, selection: Selection) -> pa.Schema:
    """Return the parent's schema; with a split, that column is the last."""
    schema = parent.schema
    if selection.splits is None:
        return schema
    if SPLIT.name in schema.names:
        schema = schema.remove(schema.get_field_index(SPLIT.name))
    return schema.append(SPLIT.field())


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
