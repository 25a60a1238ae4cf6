"""The original bytes of images in a manifest's own folder: fetched once, read by every later step.

`pixels/part-*.parquet` has a row for each distinct image, sorted by `content_hash`, with the bytes in the
struct that `datasets.Image` reads.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
import pydantic

from uhr.base import parquet
from uhr.base.errors import UserError, one_line
from uhr.base.files import atomic, sha256_file
from uhr.base.paths import in_store, is_url, text_path
from uhr.manifests.info import Parent, Part, Redaction
from uhr.manifests.parts import PIXELS
from uhr.manifests.places import file_at
from uhr.manifests.schema import KEPT, Column
from uhr.manifests.sources.base import Advance, FetchedFiles, Item, Listing, Source, absolute
from uhr.manifests.sources.blobs import NO_LIMITS, Blob, MemoryBlob
from uhr.pixels.types import PixelFault

SCHEMA = pa.schema(
    [
        pa.field("content_hash", pa.string()),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
)

GROUP_ROWS, GROUP_BYTES, PART_BYTES = 100, 16 * 2**20, 2**30
"""To read one image its row group is read, so that a group has few of them."""

_CHOSEN = ("content_hash", "uri", "source_version", "source_name", "status")


class Written(NamedTuple):
    """The parts that were written, and the number of images whose bytes are not those of their row now."""

    parts: list[Part]
    lost: int


def write_pixels(
    out: Path, batches: Iterable[pa.RecordBatch], source: Source, everything: bool, advance: Advance
) -> Written:
    """Write the bytes of the kept rows that have a `content_hash`, or of all such rows, to `out/pixels`.

    Each content is stored once, and not at all if `source` reads it from the folder of another manifest.
    Bytes that cannot be read, or have another hash by now, are left out.
    """
    items: dict[str, Item] = {}
    for batch in batches:
        names = [name for name in _CHOSEN if name in batch.schema.names]
        for row in batch.select(names).to_pylist():
            if row["content_hash"] is not None and (everything or row["status"] == KEPT):
                items.setdefault(row["content_hash"], row)
    folder = out / PIXELS
    for leftover in folder.glob("part-*.parquet"):
        leftover.unlink()
    images = _Images(items, source, advance)
    parts = [_write_part(folder, number, groups) for number, groups in enumerate(_parts(iter(images)))]
    return Written(parts, images.lost)


class _Images:
    """Reads the images in the order of their hashes; counts those that are `lost`."""

    def __init__(self, items: Mapping[str, Item], source: Source, advance: Advance) -> None:
        self._items, self._source, self._advance = items, source, advance
        self.lost = 0

    def __iter__(self) -> Iterator[tuple[str, bytes, str]]:
        for key in sorted(self._items):
            item = self._items[key]
            self._advance(1)
            if isinstance(self._source, Stored) and self._source.holds(key):
                continue
            try:
                data = self._source.open(item).read(NO_LIMITS)
            except PixelFault:
                self.lost += 1
                continue
            if hashlib.sha256(data).hexdigest() != key:
                self.lost += 1
                continue
            yield key, data, item["uri"].rpartition("/")[2]


def _parts(images: Iterator[tuple[str, bytes, str]]) -> Iterator[Iterator[pa.Table]]:
    """Group images into row groups, and these into parts."""
    groups = _groups(images)
    for first in groups:
        yield _until_full(first, groups)


def _until_full(first: pa.Table, groups: Iterator[pa.Table]) -> Iterator[pa.Table]:
    size = first.nbytes
    yield first
    while size < PART_BYTES and (group := next(groups, None)) is not None:
        size += group.nbytes
        yield group


def _groups(images: Iterator[tuple[str, bytes, str]]) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    size = 0
    for key, data, name in images:
        if rows and (len(rows) == GROUP_ROWS or size + len(data) > GROUP_BYTES):
            yield pa.Table.from_pylist(rows, SCHEMA)
            rows, size = [], 0
        rows.append({"content_hash": key, "image": {"bytes": data, "path": name}})
        size += len(data)
    if rows:
        yield pa.Table.from_pylist(rows, SCHEMA)


def _write_part(folder: Path, number: int, groups: Iterator[pa.Table]) -> Part:
    path = folder / f"part-{number:05d}.parquet"
    rows = 0
    with atomic(path) as temporary:
        # image files are compressed already; the page index lets readers find one of them
        with parquet.writer(temporary, SCHEMA, compression="none", write_page_index=True) as writer:
            for group in groups:
                writer.write_table(group, row_group_size=GROUP_ROWS)
                rows += group.num_rows
        digest, size = sha256_file(temporary), temporary.stat().st_size
    return Part(path=f"{PIXELS}/{path.name}", rows=rows, bytes=size, sha256=digest)


class _Group(NamedTuple):
    """A row group: the largest hash in it, its part, and its number in that."""

    last: str
    part: str
    number: int


class PixelStore:
    """Reads the bytes of single images from the parts of one manifest, whose place is as `places.place_of`
    writes it. One per process.
    """

    def __init__(self, place: str, parts: Sequence[str]) -> None:
        self._place = place
        self._parts = parts
        self._held: tuple[_Group, dict[str, bytes]] | None = None

    @cached_property
    def _groups(self) -> list[_Group]:
        found = []
        for part in self._parts:
            with parquet.opened(file_at(self._place, part)) as file:
                for number in range(file.num_row_groups):
                    last = file.metadata.row_group(number).column(0).statistics.max
                    found.append(_Group(last, part, number))
        return found

    def read(self, content_hash: str) -> bytes | None:
        """The bytes with this hash; None if they are not here."""
        place = bisect.bisect_left(self._groups, content_hash, key=lambda group: group.last)
        if place == len(self._groups):
            return None
        group = self._groups[place]
        if self._held is None or self._held[0] != group:
            with parquet.opened(file_at(self._place, group.part)) as file:
                rows = file.read_row_group(group.number)
            images = rows["image"].combine_chunks().field("bytes")
            self._held = group, dict(zip(rows["content_hash"].to_pylist(), images.to_pylist(), strict=True))
        return self._held[1].get(content_hash)


class Stored(Source):
    """The images whose bytes are in the folder `path` of a manifest, or at this address; `source` opens all
    others, and those whose `content_hash` is in `hidden`.
    """

    kind = "stored"

    path: Annotated[str, pydantic.AfterValidator(lambda text: text if is_url(text) else absolute(text))]
    parts: tuple[str, ...]
    source: Any
    hidden: tuple[str, ...] = ()

    @property
    def place(self) -> Path | str:
        return self.source.place

    @property
    def local_paths(self) -> Sequence[Path]:
        return self.source.local_paths

    @property
    def addresses(self) -> Sequence[str]:
        return self.source.addresses

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.source.columns

    @property
    def parents(self) -> Sequence[Parent]:
        return self.source.parents

    @property
    def redactions(self) -> Sequence[Redaction]:
        return self.source.redactions

    @property
    def fetches(self) -> bool:
        return self.source.fetches

    def fetches_item(self, item: Item) -> bool:
        return not self.holds(item.get("content_hash")) and self.source.fetches_item(item)

    @property
    def gives_evidence(self) -> bool:
        return self.source.gives_evidence

    @property
    def obeys(self) -> bool:
        return self.source.obeys

    def spooled(self, files: FetchedFiles) -> Stored:
        return self.model_copy(update={"source": self.source.spooled(files)})

    def lane(self, item: Item) -> str | None:
        return None if self.holds(item.get("content_hash")) else self.source.lane(item)

    def part(self, item: Item) -> Source:
        return self.source.part(item)

    def prefetch(self, items: Iterable[Item], fetch: Callable[[Item], None] | None = None) -> None:
        self.source.prefetch([item for item in items if not self.holds(item.get("content_hash"))], fetch)

    def holds(self, content_hash: str | None) -> bool:
        """Whether the bytes with this hash are in the folder, or in one that `source` reads."""
        if content_hash is None:
            return False
        if self._read(content_hash) is not None:
            return True
        return isinstance(self.source, Stored) and self.source.holds(content_hash)

    def _read(self, content_hash: str) -> bytes | None:
        """Return the bytes with this hash; None if they are not in the folder. Raises UserError if that
        cannot be read.
        """
        if content_hash in self.hidden:
            return None
        try:
            return self.store.read(content_hash)
        except (OSError, pa.ArrowException) as error:
            fix = "restore the folder, or make the manifest anew"
            what = f"the stored images of {self.path} cannot be read ({one_line(error)})"
            raise UserError(what, fix) from None

    def without(self, hashes: Iterable[str]) -> Stored:
        """Return the source that does not read the bytes with these hashes from any folder of a manifest."""
        hidden = tuple(sorted({*self.hidden, *hashes}))
        source = self.source.without(hidden) if isinstance(self.source, Stored) else self.source
        return self.model_copy(update={"hidden": hidden, "source": source})

    def check(self) -> None:
        self.source.check()

    def _list(self, advance: Advance) -> Listing:
        place = self.path if in_store(self.path) else text_path(self.path)
        raise UserError(f"{place} is a manifest", f"name it as manifest:{place}")

    @cached_property
    def store(self) -> PixelStore:
        return PixelStore(self.path, self.parts)

    def open(self, item: Item) -> Blob:
        key = item.get("content_hash")
        data = None if key is None else self._read(key)
        return self.source.open(item) if data is None else MemoryBlob(data)

    def described(self) -> dict[str, Any]:
        tree: dict[str, Any] = {"kind": self.kind, "path": self.path, "parts": list(self.parts)}
        if self.hidden:
            tree["hidden"] = list(self.hidden)
        return {**tree, "source": self.source.described()}
