"""Several sources under names, listed together: rows say which they come from, in `source_name`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from uhr.base.errors import UserError
from uhr.manifests.info import Parent, Redaction
from uhr.manifests.schema import SOURCE_NAME, Column
from uhr.manifests.sources.base import Advance, FetchedFiles, Item, Listing, Source
from uhr.manifests.sources.blobs import Blob


class Named(Source):
    """The sources of a pipeline by name. The `sample_id` of a row then depends on the name as well."""

    kind = "named"

    sources: Mapping[str, Any]
    """Name -> Source."""

    @property
    def place(self) -> str:
        return ", ".join(f"{name} ({source.place})" for name, source in self.sources.items())

    @property
    def columns(self) -> tuple[Column, ...]:
        own = [column for source in self.sources.values() for column in source.columns]
        return (SOURCE_NAME, *{column.name: column for column in own}.values())

    @property
    def parents(self) -> Sequence[Parent]:
        return [parent for source in self.sources.values() for parent in source.parents]

    @property
    def redactions(self) -> Sequence[Redaction]:
        return [each for source in self.sources.values() for each in source.redactions]

    @property
    def local_paths(self) -> Sequence[Path]:
        return [path for source in self.sources.values() for path in source.local_paths]

    @property
    def addresses(self) -> Sequence[str]:
        return [address for source in self.sources.values() for address in source.addresses]

    @property
    def fetches(self) -> bool:
        return any(source.fetches for source in self.sources.values())

    def fetches_item(self, item: Item) -> bool:
        return self._source_of(item).fetches_item(item)

    @property
    def gives_evidence(self) -> bool:
        return any(source.gives_evidence for source in self.sources.values())

    @property
    def obeys(self) -> bool:
        return all(source.obeys for source in self.sources.values())

    def spooled(self, files: FetchedFiles) -> Named:
        return Named(sources={n: source.spooled(files.within(n)) for n, source in self.sources.items()})

    def lane(self, item: Item) -> str | None:
        return self._source_of(item).lane(item)

    def part(self, item: Item) -> Source:
        return self._source_of(item)

    def prefetch(self, items: Iterable[Item], fetch: Callable[[Item], None] | None = None) -> None:
        by_name: dict[str, list[Item]] = {}
        for item in items:
            by_name.setdefault(str(item.get(SOURCE_NAME.name)), []).append(item)
        for name, own in by_name.items():
            self.sources[name].prefetch(own, fetch)

    def check(self) -> None:
        for source in self.sources.values():
            source.check()

    def _list(self, advance: Advance) -> Listing:
        tables, counts, unreadable, size = [], Counter[str](), [], 0
        for name, source in self.sources.items():
            listing = source.list(advance)
            if SOURCE_NAME.name in listing.items.schema.names:
                raise UserError(
                    f"source '{name}' has named sources itself", "name it with --source, without sources"
                )
            column = pa.repeat(pa.scalar(name), listing.items.num_rows)
            tables.append(listing.items.append_column(SOURCE_NAME.name, column))
            counts.update(listing.not_opened)
            unreadable += [f"{name}: {each}" for each in listing.unreadable]
            size += listing.bytes
        items = pa.concat_tables(tables, promote_options="default")
        items = items.sort_by([("uri", "ascending"), (SOURCE_NAME.name, "ascending")])
        return Listing(self, items, dict(counts), size, unreadable)

    def open(self, item: Item) -> Blob:
        return self._source_of(item).open(item)

    def _source_of(self, item: Item) -> Source:
        name = str(item.get(SOURCE_NAME.name))
        if name not in self.sources:
            raise UserError(
                f"'{item['uri']}' is of source '{name}', and there are {', '.join(self.sources)}",
                "name the sources that the manifest was made from",
            )
        return self.sources[name]

    def described(self) -> dict[str, Any]:
        return {"kind": self.kind, "sources": {n: source.described() for n, source in self.sources.items()}}
