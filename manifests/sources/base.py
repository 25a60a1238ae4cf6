"""Sources: where the samples of a manifest come from, and the only way from a row to its bytes.

`Source.list` gives the items to curate, `Source.open` the bytes of one of them, as a `Blob`. A source is a
configuration that can be stored: `manifest.json` has its description, and later steps open the same bytes.
Several threads may call `Source.open` at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from uhr.base.config import Config
from uhr.base.errors import UserError
from uhr.base.files import file_version
from uhr.base.formatting import human_bytes
from uhr.base.paths import in_store, path_text, text_path, text_place, unescaped
from uhr.manifests.info import Parent, Redaction
from uhr.manifests.schema import CONTRACT, SOURCE_NAME, Column
from uhr.manifests.sources import tables
from uhr.manifests.sources.blobs import Blob, size_of

ITEMS = pa.schema(
    [
        pa.field("uri", pa.string()),
        pa.field("source_version", pa.string()),
        pa.field(
            "sidecars", pa.list_(pa.string()), metadata={"meaning": "uris of caption and metadata files"}
        ),
        pa.field("sidecar_versions", pa.string()),
        pa.field("fault", pa.string(), metadata={"meaning": "why there is nothing to read"}),
        pa.field("fault_words", pa.string()),
    ]
)
"""The columns of every listing, sorted by uri. `fault` is null if the item can be read; `fault_words` is its
message. Names and messages are part of the hash of a run's inputs, and must not change.

A listing may have more columns: `GIVEN`, and columns of the manifest whose values the source states.
"""

GIVEN = pa.field("given", pa.string(), metadata={"meaning": "what a table says of the item, as JSON object"})
"""Column of a listing that is read as a JSON sidecar is, before the sidecars."""

NOT_OPENED = ("linked_folders", "unreadable_folders", "sockets", "pipes", "devices")

BROKEN_LINK = "broken link"
"""The `fault` of a link that leads to no file."""

Advance = Callable[[int], None]
"""Called with numbers of items while a source is listed."""

Item = Mapping[str, Any]
"""What identifies the bytes to open: `uri`; `source_version`, if only that version is wanted; `source_name`
where there are several sources. A row of a manifest or of a listing is one.
"""


def absolute(text: str) -> str:
    """Return the text of a path, as `path_text` writes it, as that of an absolute path. Raises UserError for
    an address of an object store.
    """
    if in_store(text):
        raise UserError(f"{text} is in an object store, and no folder of this machine", "name the kind s3")
    return path_text(os.path.abspath(text_path(text)))


LocalPath = Annotated[str, pydantic.AfterValidator(absolute)]
"""A path of this machine, made absolute, as `uhr.base.paths.path_text` writes it."""

AnyPlace = Annotated[str, pydantic.AfterValidator(lambda text: text if in_store(text) else absolute(text))]
"""A `LocalPath`, or an address in an object store."""


@dataclass
class Listing:
    """A source as it was listed.

    `items` begins with the columns of ITEMS, sorted by uri; `not_opened` counts what was found and is no
    item; `bytes` is the size of all files as far as the source knows it; `unreadable` names the folders and
    archives that could not be read.
    """

    source: Source
    items: pa.Table
    not_opened: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    unreadable: list[str] = field(default_factory=list)

    def first(self, count: int) -> Listing:
        """Return a listing of the first `count` items; its `bytes` are theirs and their sidecars'."""
        return self._of(self.items.slice(0, count))

    def drawn(self, count: int, seed: int) -> Listing:
        """Return a listing of `count` items that are drawn at random. Whether one is drawn depends only on
        its name, on the seed and on which others there are, not on their order.
        """
        columns = [n for n in ("uri", SOURCE_NAME.name) if n in self.items.schema.names]
        names = zip(*(self.items[n].to_pylist() for n in columns), strict=True)
        draws = [hashlib.sha256(json.dumps([seed, *name]).encode()).digest() for name in names]
        chosen = sorted(sorted(range(len(draws)), key=draws.__getitem__)[:count])
        return self._of(self.items.take(pa.array(chosen, pa.int64())))

    def where(self, kept: pa.BooleanArray, name: str) -> Listing:
        """Return a listing of the items for which `kept` is true; the others are counted as `name`."""
        counts = self.not_opened | {name: kept.false_count}
        return replace(self._of(self.items.filter(kept)), not_opened=counts)

    def _of(self, items: pa.Table) -> Listing:
        sizes: dict[str, int] = {}  # by uri: two images may share a sidecar
        for row in items.select(ITEMS.names).to_pylist():
            uris = [row["uri"], *(row["sidecars"] or ())]
            versions = [row["source_version"], *(row["sidecar_versions"] or "").split(",")]
            sizes.update((u, size_of(v)) for u, v in zip(uris, versions, strict=False) if v)
        return replace(self, items=items, bytes=sum(sizes.values()))

    def describe(self) -> str:
        """Return a short text such as `1,234 files, 5.6 GB`."""
        count = self.items.num_rows
        size = f", {human_bytes(self.bytes)}" if self.bytes else ""
        return f"{count:,} {'file' if count == 1 else 'files'}{size}"


class TableJoin(Config):
    """A table beside a source, such as a vendor's CSV: each row goes to the item that its column `key` names.

    on: what the key is: the item's `path` in the source, its file `name`, or that without suffix (`stem`).
    """

    path: AnyPlace
    key: str
    on: Literal["path", "name", "stem"] = "name"

    def joined(self, listing: Listing) -> Listing:
        """Return the listing with the rows of the table in its column GIVEN, over what was there.

        Raises UserError if the table cannot be read, has no such column, or has no row for any item.
        """
        values: dict[str, str] = {}
        replaced = 0
        with tables.opened(self.path) as files:
            for file in files:
                table = tables.read_table(file)
                key = tables.column_of(table, self.key, (), str(file), "it")
                replaced += tables.add_by_key(values, table, key)
        keys = [self._key(uri) for uri in listing.items["uri"].to_pylist()]
        if not values.keys() & keys:
            example = f"'{next(iter(values))}' and the files are '{keys[0]}'" if values else "empty"
            what = f"no file of {listing.source.place} has a row in {text_place(self.path)}"
            raise UserError(f"{what}: its keys are {example}", "check key, and on: path, name or stem")
        counts = dict(listing.not_opened)
        for name, count in (("unmatched_rows", len(values.keys() - set(keys))), ("replaced_rows", replaced)):
            counts[name] = counts.get(name, 0) + count
        return replace(listing, items=with_given(listing.items, map(values.get, keys)), not_opened=counts)

    def _key(self, uri: str) -> str:
        path = unescaped(uri)
        name = path.rpartition("/")[2]
        return {"path": path, "name": name, "stem": name.rpartition(".")[0] or name}[self.on]


def with_given(items: pa.Table, values: Iterable[str | None]) -> pa.Table:
    """Return the items with these JSON objects in the column GIVEN, merged over those that are there."""
    new = list(values)
    if GIVEN.name in items.schema.names:
        place = items.schema.get_field_index(GIVEN.name)
        old = items[GIVEN.name].to_pylist()
        new = [a if b is None else b if a is None else _merged(a, b) for a, b in zip(old, new, strict=True)]
        return items.set_column(place, GIVEN, pa.array(new, pa.string()))
    return items.append_column(GIVEN, pa.array(new, pa.string()))


def _merged(first: str, second: str) -> str:
    return json.dumps({**json.loads(first), **json.loads(second)}, ensure_ascii=False)


class FetchedFiles(Config):
    """Where the files are that a source fetches during a run.

    folder: of this machine. store: an address in an object store that several machines share; `folder` then
    has only what each of them needs for itself. earlier: folders or addresses of unfinished runs, from which
    files are taken over. again: a name of this run, if it tries again, once, what could not be fetched before
    it. name: the folder in each of these that has the files of one of several sources.
    """

    folder: str
    store: str | None = None
    earlier: tuple[str, ...] = ()
    again: str = ""
    name: str = ""

    def within(self, name: str) -> FetchedFiles:
        """Return the places of one of several sources."""
        return self.model_copy(update={"name": f"{self.name}/{name}" if self.name else name})


class Source(Config, ABC):
    """Where samples come from. A subclass is one kind, with its options as fields; `open` must give the same
    bytes in any process, and for a row that was read from a manifest.

    `license`, `contract` and `caption` are values for the items whose own files and tables state none. In
    `caption`, `{stem}` is the name of the item's file without suffix, with spaces for `_` and `-`. `table`
    has more values of the items.
    """

    kind: ClassVar[str]

    license: str | None = None
    contract: str | None = None
    caption: str | None = None
    table: TableJoin | None = None

    @classmethod
    def of_text(cls, text: str) -> Source:
        """Make the source that `--source KIND:TEXT` names: by default with `text` as its field `path`."""
        return cls.model_validate({"path": text if in_store(text) else path_text(os.path.abspath(text))})

    @property
    @abstractmethod
    def place(self) -> Path | str:
        """Where the source is, for messages and as `root` in `manifest.json`."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the manifest that the listing has and that not every manifest has."""
        return (CONTRACT,) if self.contract is not None else ()

    @property
    def fetches(self) -> bool:
        """Whether the bytes of items may have to be fetched over a network, once for each item."""
        return False

    def fetches_item(self, item: Item) -> bool:
        """Whether those of this item have to be."""
        return self.fetches

    @property
    def gives_evidence(self) -> bool:
        """Whether how an item was fetched belongs into its row: the source is a list of what to fetch."""
        return self.fetches

    @property
    def obeys(self) -> bool:
        """Whether reservations of the sites are obeyed from which the bytes are fetched."""
        return True

    def spooled(self, files: FetchedFiles) -> Source:
        """Return this source for the time of a run: what it fetches is there, for all processes."""
        return self

    def lane(self, item: Item) -> str | None:
        """Return what else fails where this item fails because of its place: its host, its bucket; None for
        files of this machine.
        """
        return None

    def part(self, item: Item) -> Source:
        """Return the source that an item is of, where this one has several."""
        return self

    def contact(self, items: Sequence[Item]) -> str | None:
        """Say that none of the hosts answers from which a source that `fetches` has these items; None if one
        does. No item is fetched.
        """
        return None

    def prefetch(self, items: Iterable[Item], fetch: Callable[[Item], None] | None = None) -> None:
        """Fetch these items, many at a time, if the source `fetches`. Raises nothing: what fails is a fault
        of the item's Blob.

        fetch: called for each item in a thread, instead of fetching it by `facts` of its Blob.
        """
        return

    @property
    def local_paths(self) -> Sequence[Path]:
        """The files and folders of this machine that the source reads; OUT may not be inside of them."""
        return ()

    @property
    def addresses(self) -> Sequence[str]:
        """The prefixes of object stores that the source lists; OUT may not overlap with them."""
        return ()

    @property
    def parents(self) -> Sequence[Parent]:
        """The manifests that the rows come from."""
        return ()

    @property
    def redactions(self) -> Sequence[Redaction]:
        """What was forgotten from these manifests."""
        return ()

    @abstractmethod
    def check(self) -> None:
        """Raise UserError if it is certain, at almost no cost, that nothing can be listed."""

    def list(self, advance: Advance = lambda count: None) -> Listing:
        """List every item. Raises UserError if the source cannot be read, or if it has no item."""
        listing = self._list(advance)
        if self.table is not None:
            listing = self.table.joined(listing)
        given = {"license": self.license, "contract": self.contract, "caption": self.caption}
        for name, value in given.items():
            if value is None:
                continue
            items = listing.items
            texts = [value] * items.num_rows
            if name == "caption" and "{stem}" in value:
                texts = [value.replace("{stem}", _words(uri)) for uri in items["uri"].to_pylist()]
            column = pa.array(texts, pa.string())
            if name in items.schema.names:
                column = pc.call_function("coalesce", [items[name], column])
                items = items.drop_columns(name)
            listing = replace(listing, items=items.append_column(name, column))
        return listing

    @abstractmethod
    def _list(self, advance: Advance) -> Listing:
        """Do `list` without the default values."""

    @abstractmethod
    def open(self, item: Item) -> Blob:
        """Return the bytes of an item. Nothing is read yet: what cannot be read is a fault of the Blob.

        Raises UserError if the item's `uri` cannot be of this source.
        """

    def described(self) -> dict[str, Any]:
        """Return the source as plain data, from which `uhr.manifests.sources.build` makes it again."""
        return {"kind": self.kind, **self.model_dump(mode="json", exclude_defaults=True)}

    @property
    def origin(self) -> dict[str, Any] | None:
        """The description for `manifest.json`; None for a plain folder, of which `place` says everything."""
        return self.described()

    def __getstate__(self) -> dict[Any, Any]:
        """Leave out what was cached, such as open files: every process opens its own."""
        state = super().__getstate__()
        return {**state, "__dict__": {k: v for k, v in self.__dict__.items() if k in type(self).model_fields}}


def _words(uri: str) -> str:
    """The name of an item's file as a text: without its suffix, with spaces for `_` and `-`."""
    return re.sub(r"[_-]+", " ", Path(unescaped(uri)).stem).strip()


def items_table(rows: list[tuple[Any, ...]], schema: pa.Schema = ITEMS) -> pa.Table:
    """Make the items of a listing of tuples in the order of `schema`, sorted by uri."""
    rows.sort(key=lambda row: row[0])
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


_NUMBER = re.compile(r"#\d+\Z")


def numbered(name: str, seen: dict[str, int]) -> str:
    """Return `name`, or, if it is in `seen`, the first of `name#2`, `name#3`, ... that is not; add it.

    seen: the last number that each name was given, 1 for a name of its own; empty at first.
    """
    number = seen.get(name, 0)
    found = name
    while number and found in seen:
        # all numbers up to the last one are taken: a list may have the same name a million times
        number += 1
        found = f"{name}#{number}"
    seen[name] = max(number, 1)
    seen.setdefault(found, 1)
    return found


def unnumbered(name: str) -> str:
    """Return a name without the number that `numbered` may have given it."""
    return _NUMBER.sub("", name)


def version_of(path: Path | str) -> str | None:
    """The version of a file now; None if there is none."""
    try:
        return file_version(os.stat(path))
    except OSError:
        return None


def check_no_overlap(source: Source, out: Path | str) -> None:
    """Raise UserError if OUT, a folder or an address, is inside a place of the source or the other way round:
    what is written there would be listed as images of the source.
    """
    if in_store(out):
        for place in source.addresses:
            one, two = f"{place.rstrip('/')}/", f"{out.rstrip('/')}/"
            if one.startswith(two) or two.startswith(one):
                raise UserError(f"--out {out} and the source {place} overlap", "name another prefix")
        return
    b = Path(out).resolve()
    for path in source.local_paths:
        a = path.resolve()
        if a == b or a in b.parents:
            raise UserError(f"--out {out} is inside the source {path}", "name a folder outside it")
        if b in a.parents:
            raise UserError(f"the source {path} is inside --out {out}", "name a folder outside it")
