"""Rows of a manifest by position, from columns that are kept in memory within a limit."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar

import pyarrow as pa

from uhr.manifests.manifest import Manifest, RowGroup

COLUMN_BYTES = 512 << 20
"""Memory for columns: those of a page of about 20 million rows."""

V = TypeVar("V")


class Cache(Generic[V]):
    """The values that were used last, of no more than `limit` in all by `size`. For several threads."""

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        self._limit, self._size = limit, size
        self._held: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()
        self.total = 0

    def get(self, key: Hashable) -> V | None:
        """Return the value of a key, if it is held."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: Hashable, value: V) -> V:
        """Hold a value, and drop those that were not used for longest. Returns the value."""
        with self._lock:
            if key in self._held:
                self.total -= self._size(self._held.pop(key))
            self._held[key] = value
            self.total += self._size(value)
            while self.total > self._limit and len(self._held) > 1:
                self.total -= self._size(self._held.popitem(last=False)[1])
        return value


def _bytes(column: pa.Array) -> int:
    return column.nbytes


class Rows:
    """Reads single rows: a row group is the least that can be read, so that its columns are kept."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._columns: Cache[pa.Array] = Cache(COLUMN_BYTES, _bytes)

    @cached_property
    def _groups(self) -> list[RowGroup]:
        return self._manifest.row_groups()

    def at(self, positions: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return these columns of the rows at `positions`, in order. Raises IndexError beyond the end."""
        found = []
        held: dict[int, dict[str, pa.Array]] = {}
        for position in positions:
            number = self._group_of(position)
            if number not in held:
                held[number] = self._read(number, columns)
            place = position - self._groups[number].start
            found.append({name: held[number][name][place].as_py() for name in columns})
        return found

    def whole(self, position: int) -> dict[str, Any]:
        """Return all columns of one row but its vectors, which are None. Nothing of it is kept."""
        group = self._groups[self._group_of(position)]
        schema = self._manifest.schema
        names = [field.name for field in schema if not is_vector(field.type)]
        row = self._manifest.row_group(group, names).slice(position - group.start, 1).to_pylist()[0]
        return {name: row.get(name) for name in schema.names}

    def _group_of(self, position: int) -> int:
        if not 0 <= position < self._manifest.info.counts["rows"]:
            raise IndexError(position)
        return bisect.bisect_right(self._groups, position, key=lambda group: group.start) - 1

    def _read(self, number: int, columns: Sequence[str]) -> dict[str, pa.Array]:
        held = {name: self._columns.get((number, name)) for name in columns}
        missing = [name for name, column in held.items() if column is None]
        if missing:
            table = self._manifest.row_group(self._groups[number], missing)
            for name in missing:
                held[name] = self._columns.put((number, name), table[name].combine_chunks())
        return {name: column for name, column in held.items() if column is not None}


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column has lists of floating-point numbers, such as embeddings."""
    return hasattr(kind, "value_type") and pa.types.is_floating(kind.value_type)
