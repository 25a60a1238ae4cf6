"""The bytes of one item of a source: a file, a part of one, bytes in memory, or a fault."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uhr.base.files import sha256_file
from uhr.pixels.decode import PixelLimits, check_bytes, read_bytes
from uhr.pixels.files import open_version, stat_file
from uhr.pixels.headers import FIRST_BYTES, header_of, read_header
from uhr.pixels.types import FileBytes, Header, PixelFault


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
        with open_version(self.path, self.version) as handle:
            return os.pread(handle, count, offset)

    def read(self, limits: PixelLimits | None = None) -> bytes:
        return read_bytes(self.path, limits, self.version)

    def check_unchanged(self) -> None:
        if self.version is not None:
            stat_file(self.path, self.version)

    def header(self) -> Header:
        return read_header(self.path, self.version)

    def sha256(self) -> str:
        return sha256_file(Path(self.path))


class RangeBlob(Blob):
    """A part of a file of this machine: `size` bytes from `offset`. `version` is that of the whole file."""

    __slots__ = ("_file", "_offset", "_size", "path", "version")

    def __init__(self, file: str, version: str | None, offset: int, size: int) -> None:
        self._file, self._offset, self._size = file, offset, size
        self.version = version
        self.path = None

    @property
    def size(self) -> int:
        return self._size

    def at(self, offset: int, count: int) -> bytes:
        count = max(0, min(count, self._size - offset))
        with open_version(self._file, self.version) as handle:
            return self._whole(handle, offset, count)

    def read(self, limits: PixelLimits | None = None) -> bytes:
        check_bytes(self._size, limits or PixelLimits())
        return self.at(0, self._size)

    def header(self) -> Header:
        with open_version(self._file, self.version) as handle:
            first = self._whole(handle, 0, min(FIRST_BYTES, self._size))
            return header_of(FileBytes(first, self._size, lambda at, count: self._whole(handle, at, count)))

    def check_unchanged(self) -> None:
        if self.version is not None:
            stat_file(self._file, self.version)

    def _whole(self, handle: int, offset: int, count: int) -> bytes:
        data = os.pread(handle, count, self._offset + offset)
        if len(data) < count:
            raise PixelFault("truncated", "the archive ends inside of this member")
        return data


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
