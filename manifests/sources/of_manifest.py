"""A manifest as a source: its rows get more columns, and keep those that they have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa
from pydantic import Field

from uhr.base.errors import UserError
from uhr.base.paths import text_place
from uhr.manifests import places
from uhr.manifests.info import Parent, Redaction
from uhr.manifests.manifest import Manifest
from uhr.manifests.schema import BASE, CHANNELS, REJECTED_BY, VERDICT, Column
from uhr.manifests.sources.base import (
    ITEMS,
    Advance,
    AnyPlace,
    FetchedFiles,
    Item,
    Listing,
    Source,
)
from uhr.manifests.sources.blobs import Blob

_MADE = {
    *("sample_id", "uri", "source_version", "parent_id", "box"),
    *(column.name for column in (*VERDICT, CHANNELS, REJECTED_BY)),
}
"""Columns that every run makes anew, of the same uri."""


class OfManifest(Source):
    """The rows of a manifest for which `where` is true; by default those that it keeps. All its columns are
    in the new manifest, save for those that a stage of the pipeline adds.
    """

    kind = "manifest"

    path: AnyPlace
    where: str = "status = 'kept'"
    spool: FetchedFiles | None = Field(None, exclude=True)
    """Where the files are that were fetched, set for the time of a run: those that the manifest has not
    stored."""

    @property
    def place(self) -> Path | str:
        return text_place(self.path)

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.open(self.place)

    @property
    def columns(self) -> tuple[Column, ...]:
        made = _MADE.union(column.name for column in BASE)
        own = [column for column in self.manifest.columns if column.name not in made]
        return (*own, *(each for each in super().columns if each.name not in {c.name for c in own}))

    @property
    def local_paths(self) -> Sequence[Path]:
        own = () if isinstance(self.place, str) else (self.place,)
        return (*own, *self.manifest.source.local_paths)

    @property
    def addresses(self) -> Sequence[str]:
        own = (self.place,) if isinstance(self.place, str) else ()
        return (*own, *self.manifest.source.addresses)

    @cached_property
    def images(self) -> Source:
        """Where the bytes of the rows are."""
        source = self.manifest.source
        return source if self.spool is None else source.spooled(self.spool)

    def spooled(self, files: FetchedFiles) -> OfManifest:
        # not a copy, which would have what this source has opened
        return OfManifest.model_validate({**self.model_dump(), "spool": files})

    @property
    def fetches(self) -> bool:
        return self.manifest.source.fetches

    def fetches_item(self, item: Item) -> bool:
        return self.images.fetches_item(item)

    @property
    def gives_evidence(self) -> bool:
        return False  # the rows have it

    def lane(self, item: Item) -> str | None:
        return self.images.lane(item)

    def contact(self, items: Sequence[Item]) -> str | None:
        return self.images.part(items[0]).contact(items)

    def prefetch(self, items: Iterable[Item], fetch: Callable[[Item], None] | None = None) -> None:
        self.images.prefetch(items, fetch)

    @property
    def parents(self) -> Sequence[Parent]:
        made = self.manifest
        return [Parent(id=made.id, path=places.place_of(self.place), role="columns added to")]

    @property
    def redactions(self) -> Sequence[Redaction]:
        return self.manifest.info.redactions

    def check(self) -> None:
        assert self.manifest

    def _list(self, advance: Advance) -> Listing:
        rows = self.manifest.table(where=self.where)
        patches = rows.num_rows - rows["parent_id"].null_count
        if patches:
            raise UserError(
                f"{self.place} has {patches:,} patches, and a source has whole images",
                "slice it first, `uhr manifest slice M --where 'parent_id IS NULL' --out IMAGES`, or "
                "add that to its option where",
            )
        if not rows.num_rows:
            raise UserError(f"no row of {self.place} is `{self.where}`", "change its option where")
        # the values of sidecars and tables are columns of the manifest already
        listed = [
            rows[field.name]
            if field.name in ("uri", "source_version")
            else pa.nulls(rows.num_rows, field.type)
            for field in ITEMS
        ]
        kept = [field for field in rows.schema if field.name not in _MADE]
        columns = [*listed, *(rows[field.name] for field in kept)]
        items = pa.table(columns, schema=pa.schema([*ITEMS, *(f.remove_metadata() for f in kept)]))
        advance(items.num_rows)
        return Listing(self, items)

    def open(self, item: Item) -> Blob:
        return self.images.open(item)
