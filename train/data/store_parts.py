"""Parquet parts in an object store, read by row group through a cache on the disk of this machine.

A row group is one request, and becomes a file that has it in its place in the part, and the footer in its
own; what is between them is a hole, which takes no space. So it is read as the whole part would be. A part of
2 GiB of which one row is used costs this row's group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from uhr.base import parquet
from uhr.base.errors import UserError
from uhr.base.files import user_cache
from uhr.base.store import ObjectChanged, ObjectStore
from uhr.manifests.info import Part
from uhr.train.data.disk_cache import DiskCache

CACHE = "encoded"
"""The folder of the user's cache."""

REQUESTS = 8
"""Requests of one reader at a time."""

FOOTERS = 256
"""Footers that are kept in memory; each has some 100 bytes per row group and column."""

_TAIL = 64 << 10
"""Bytes of a part's end that are read to find its footer."""

_AGAIN = "copy the set there again, or encode again into another prefix"


class _Range(NamedTuple):
    start: int
    count: int


class StoreParts:
    """The parts below a prefix; threads and processes share the cache.

    Every request is for the version that was listed when the set was opened, so that rows of two versions are
    never mixed. Bytes are verified by the checksums of their pages, where they are read (`rows.PartRows`).

    Args:
        versions: `SIZE-ETAG` of each part by its path.
        limit: of the cache, in bytes.
    """

    remote = True

    def __init__(self, store: ObjectStore, versions: Mapping[str, str], limit: int) -> None:
        self._store, self._versions = store, versions
        self._cache = DiskCache(user_cache(CACHE), limit)
        self._tail = lru_cache(FOOTERS)(self._fetched_tail)
        self._range = lru_cache(FOOTERS * 64)(self._found_range)

    def name(self, part: Part) -> str:
        return self._store.place(part.path)

    def footer(self, part: Part) -> pq.FileMetaData:
        return pq.read_metadata(pa.BufferReader(self._tail(part)))

    def key(self, part: Part, group: int) -> str:
        return f"{part.path} {group}"

    def mapped(self, part: Part, group: int) -> pa.Buffer:
        while True:
            path = self._fetched(part, group)
            try:
                return parquet.mapped_bytes(path)
            except FileNotFoundError:
                continue  # removed meanwhile, for another file

    def prepare(self, groups: Iterable[tuple[Part, int]]) -> None:
        wanted = {self.key(part, group): (part, group) for part, group in groups}
        _together(self._fetched, wanted.values())

    def prepare_footers(self, parts: Iterable[Part]) -> None:
        _together(self._tail, ((part,) for part in parts))

    def discard(self, part: Part, group: int) -> bool:
        return self._cache.remove(self._group_name(part, group))

    def _fetched(self, part: Part, group: int) -> Path:
        """The file of a row group, fetched if it is not there."""
        # before `make`, which must not use the cache: it runs while the name is locked
        at, tail = self._range(part, group), self._tail(part)

        def make(path: Path) -> None:
            data = self._read(part, at)
            with open(path, "wb") as file:
                file.seek(at.start)
                file.write(data)
                file.seek(part.bytes - len(tail))
                file.write(tail)

        return self._cache.get(self._group_name(part, group), make)

    def _group_name(self, part: Part, group: int) -> str:
        return self._file_name(part, group, self._range(part, group).count + len(self._tail(part)))

    def _file_name(self, part: Part, what: int | str, size: int) -> str:
        identity = "\0".join([self.name(part), self._versions[part.path], part.sha256])
        return f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}-{what}-{size}"

    def _found_range(self, part: Part, group: int) -> _Range:
        """The bytes of a row group."""
        found = self.footer(part).row_group(group)
        columns = [found.column(number) for number in range(found.num_columns)]
        starts = [
            column.data_page_offset
            if column.dictionary_page_offset is None
            else min(column.dictionary_page_offset, column.data_page_offset)
            for column in columns
        ]
        ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
        return _Range(min(starts), max(ends) - min(starts))

    def _fetched_tail(self, part: Part) -> bytes:
        """The footer of a part with its length: the last bytes of it."""
        name = self._file_name(part, "footer", _TAIL)

        def make(path: Path) -> None:
            path.write_bytes(self._read_tail(part))

        while True:
            path = self._cache.get(name, make)
            try:
                return path.read_bytes()
            except FileNotFoundError:
                continue  # removed meanwhile, for another file

    def _read_tail(self, part: Part) -> bytes:
        data = self._end(part, min(_TAIL, part.bytes))
        size = int.from_bytes(data[-8:-4], "little") + 8
        if data[-4:] != b"PAR1" or size > part.bytes:
            raise UserError(f"{self.name(part)} is not a Parquet file", _AGAIN)
        return data[-size:] if size <= len(data) else self._end(part, size)

    def _end(self, part: Part, count: int) -> bytes:
        return self._read(part, _Range(part.bytes - count, count))

    def _read(self, part: Part, at: _Range) -> bytes:
        etag = self._versions[part.path].partition("-")[2]
        try:
            return self._store.read_range(part.path, etag, at.start, at.count)
        except FileNotFoundError:
            raise UserError(f"{self.name(part)} is missing", _AGAIN) from None
        except ObjectChanged:
            raise UserError(f"{self.name(part)} was replaced while it was read", _AGAIN) from None


def _together(call: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> None:
    """Make several calls in threads. Raises what the first of them raises that fails."""
    calls = list(arguments)
    if len(calls) == 1:
        call(*calls[0])
    elif calls:
        with ThreadPoolExecutor(min(REQUESTS, len(calls))) as pool:
            for done in [pool.submit(call, *each) for each in calls]:
                done.result()
