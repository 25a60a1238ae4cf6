"""The bytes of one item of a source: a file, an object, a part of one, bytes in memory, or a fault."""

from __future__ import annotations

import contextlib
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from uhr.base.files import sha256_file
from uhr.base.store import ObjectChanged, ObjectStore, StoreError
from uhr.pixels.decode import PixelLimits, check_bytes, read_bytes
from uhr.pixels.files import changed, open_version, stat_file
from uhr.pixels.headers import FIRST_BYTES, header_of, read_header
from uhr.pixels.types import FileBytes, Header, PixelFault

At = Callable[[int, int], bytes]
"""Returns that many bytes from an offset, or fewer at the end."""


def size_of(version: str) -> int:
    """Return the bytes of an item, with which its version begins; 0 if the source does not know them."""
    digits = version.partition("-")[0]
    return int(digits) if digits.isdigit() else 0


class Blob(ABC):
    """The bytes of one item. If `version` is set, they are of that version only: the methods raise
    PixelFault("changed") once it has another one, and PixelFault if it cannot be read.

    `path` is the file that has exactly these bytes, or None if there is no such file.
    """

    __slots__ = ()

    version: str | None
    path: str | None

    @property
    def facts(self) -> Mapping[str, Any]:
        """How the bytes were fetched, by the columns of the stage `fetch`; empty if they were not."""
        return {}

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of bytes."""

    @abstractmethod
    def at(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset`, or fewer at the end."""

    @abstractmethod
    def read(self, limits: PixelLimits | None = None) -> bytes:
        """Return all bytes. Raises PixelFault if there are none, or more than `limits` allow."""

    @abstractmethod
    def check_unchanged(self) -> None:
        """Raise PixelFault("changed") if `version` is set and the item has another one now."""

    @contextlib.contextmanager
    def reading(self) -> Generator[At]:
        """Yield `at` for several calls, between which a file stays open."""
        yield self.at

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes, or all if there are fewer."""
        return self.at(0, count)

    def header(self) -> Header:
        """Read the image's header, from no more than the bytes that it takes."""
        return header_of(FileBytes(self.head(FIRST_BYTES), self.size, self.at))

    def sha256(self) -> str:
        """The SHA-256 of the bytes, 64 hex digits. Raises OSError or PixelFault."""
        return hashlib.sha256(self.read(NO_LIMITS)).hexdigest()


NO_LIMITS = PixelLimits(pixels=2**62, file_bytes=2**62)


class LocalBlob(Blob):
    """A file of this machine."""

    __slots__ = ("path", "version")

    def __init__(self, path: str, version: str | None = None) -> None:
        self.path: str = path
        self.version = version

    @property
    def size(self) -> int:
        return stat_file(self.path, self.version).st_size

    def at(self, offset: int, count: int) -> bytes:
        with self.reading() as at:
            return at(offset, count)

    @contextlib.contextmanager
    def reading(self) -> Generator[At]:
        with open_version(self.path, self.version) as handle:
            yield lambda offset, count: os.pread(handle, count, offset)

    def read(self, limits: PixelLimits | None = None) -> bytes:
        return read_bytes(self.path, limits, self.version)

    def check_unchanged(self) -> None:
        if self.version is not None:
            stat_file(self.path, self.version)

    def header(self) -> Header:
        return read_header(self.path, self.version)

    def sha256(self) -> str:
        return sha256_file(Path(self.path))


class S3Blob(Blob):
    """An object; if `version` is set, each request is for its ETag. A range is one request."""

    __slots__ = ("_name", "_store", "path", "version")

    def __init__(self, store: ObjectStore, name: str, version: str | None) -> None:
        self._store, self._name = store, name
        self.version = version
        self.path = None

    @property
    def size(self) -> int:
        if self.version is not None:
            return size_of(self.version)
        with self._faults():
            return self._store.size(self._name)

    def at(self, offset: int, count: int) -> bytes:
        count = min(count, self.size - offset)
        return self._get(offset, count) if count > 0 else b""

    def read(self, limits: PixelLimits | None = None) -> bytes:
        check_bytes(self.size, limits or PixelLimits())
        return self._get(0, None)

    def check_unchanged(self) -> None:
        """Do nothing: every request was for the listed ETag."""

    def _get(self, offset: int, count: int | None) -> bytes:
        etag = None if self.version is None else self.version.partition("-")[2]
        with self._faults():
            return self._store.read_range(self._name, etag, offset, count)

    @contextlib.contextmanager
    def _faults(self) -> Generator[None]:
        try:
            yield
        except ObjectChanged:
            raise changed("its ETag is another than when it was listed") from None
        except FileNotFoundError:
            if self.version is not None:
                raise changed("it was removed after it was listed") from None
            raise PixelFault("unreadable", "there is no such object") from None
        except StoreError as error:
            raise PixelFault("unavailable", error.what) from None


class RangeBlob(Blob):
    """A part of a file or object: `size` bytes of `whole` from `offset`. `version` is that of the whole."""

    __slots__ = ("_offset", "_size", "_whole", "path", "version")

    def __init__(self, whole: Blob, offset: int, size: int) -> None:
        self._whole, self._offset, self._size = whole, offset, size
        self.version = whole.version
        self.path = None

    @property
    def size(self) -> int:
        return self._size

    def at(self, offset: int, count: int) -> bytes:
        with self.reading() as at:
            return at(offset, count)

    @contextlib.contextmanager
    def reading(self) -> Generator[At]:
        with self._whole.reading() as of_whole:

            def at(offset: int, count: int) -> bytes:
                count = max(0, min(count, self._size - offset))
                data = of_whole(self._offset + offset, count)
                if len(data) < count:
                    raise PixelFault("truncated", "the archive ends inside of this member")
                return data

            yield at

    def read(self, limits: PixelLimits | None = None) -> bytes:
        check_bytes(self._size, limits or PixelLimits())
        return self.at(0, self._size)

    def header(self) -> Header:
        with self.reading() as at:
            return header_of(FileBytes(at(0, FIRST_BYTES), self._size, at))

    def check_unchanged(self) -> None:
        self._whole.check_unchanged()


class MemoryBlob(Blob):
    """Bytes in memory."""

    __slots__ = ("_data", "path", "version")

    def __init__(self, data: bytes, version: str | None = None) -> None:
        self._data = data
        self.version = version
        self.path = None

    @property
    def size(self) -> int:
        return len(self._data)

    def at(self, offset: int, count: int) -> bytes:
        return self._data[offset : offset + count]

    def read(self, limits: PixelLimits | None = None) -> bytes:
        check_bytes(len(self._data), limits or PixelLimits())
        return self._data

    def check_unchanged(self) -> None:
        """Do nothing: bytes in memory do not change."""


class FaultBlob(Blob):
    """An item that cannot be opened: everything but `path` and `version` raises the same PixelFault."""

    __slots__ = ("_fault", "path", "version")

    def __init__(self, fault: PixelFault) -> None:
        self._fault = fault
        self.version = self.path = None

    @property
    def size(self) -> int:
        raise self._fault

    def at(self, offset: int, count: int) -> bytes:
        raise self._fault

    def read(self, limits: PixelLimits | None = None) -> bytes:
        raise self._fault

    def check_unchanged(self) -> None:
        """Do nothing: there is no version to compare."""
