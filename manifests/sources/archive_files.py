"""The members of a tar or zip file, and where their bytes are. Nothing is unpacked."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from uhr.base.errors import one_line
from uhr.base.files import file_version
from uhr.manifests.sources.base import numbered
from uhr.manifests.sources.blobs import Blob, FaultBlob, RangeBlob
from uhr.pixels.decode import PixelLimits, check_bytes
from uhr.pixels.files import open_version, stat_file
from uhr.pixels.types import PixelFault

TAR, ZIP = ".tar", ".zip"

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".gz", ".7z", ".rar")
"""Archives whose members cannot be read at their place."""

_LOCAL = struct.Struct("<4s22xHH")
"""Of a local header of a zip file: signature, length of the name, length of the extra field."""

_BLOCK = 512


DAMAGED = (
    *(OSError, tarfile.TarError, zipfile.BadZipFile, ValueError, struct.error, EOFError, OverflowError),
    # of a zip file for a newer version, and of a tar file with thousands of extended headers in a row
    *(NotImplementedError, RecursionError),
)
"""What the standard library raises for archives that it cannot read."""


class Member(NamedTuple):
    """A file in an archive: its bytes are those at `offset`; or, if `packed`, they are deflated there.

    fault: why they cannot be read.
    """

    name: str
    size: int
    offset: int
    packed: int | None = None
    fault: str | None = None

    def version(self, archive: str) -> str:
        """The `source_version`: size, place and form of the member, and the version of the archive."""
        packed = "" if self.packed is None else f"z{self.packed}"
        return f"{self.size}-{self.offset}{packed}@{archive}"


class Contents(NamedTuple):
    """What an archive has: members by unique name, the number of links, devices and folders in it, and why
    it could not be read to its end."""

    members: list[Member]
    others: int
    damage: str | None


def contents(file: Path) -> Contents:
    """List an archive. A damaged one has the members up to the damage. Raises nothing for what is in it."""
    found: list[Member] = []
    others, damage = 0, None
    try:
        for member in _zip(file) if file.suffix.lower() == ZIP else _tar(file):
            if member is None:
                others += 1
            else:
                found.append(member)
    except DAMAGED as error:
        damage = one_line(error) or type(error).__name__
    return Contents(_unique(found), others, damage)


def _tar(file: Path) -> Iterator[Member | None]:
    with tarfile.open(file, "r:") as tar:
        while (member := tar.next()) is not None:
            name = member.name.removeprefix("./").lstrip("/")
            if member.isreg() and member.issparse():
                yield Member(name, member.size, 0, fault="it is stored as a sparse file")
            elif member.isreg():
                yield Member(name, member.size, member.offset_data)
            elif not member.isdir():
                yield None
        end = tar.offset
    with open(file, "rb") as raw:
        raw.seek(end)
        if any(raw.read(_BLOCK)):
            # tarfile takes a damaged header for the end
            raise tarfile.ReadError(f"the header at byte {end:,} is damaged")


def _zip(file: Path) -> Iterator[Member | None]:
    with zipfile.ZipFile(file) as packed, open(file, "rb") as raw:
        for info in packed.infolist():
            if info.is_dir():
                continue
            name = info.filename.lstrip("/")
            raw.seek(info.header_offset)
            signature, names, extra = _LOCAL.unpack(raw.read(_LOCAL.size))
            if signature != b"PK\3\4":
                raise zipfile.BadZipFile(f"there is no member at byte {info.header_offset:,}")
            offset = info.header_offset + _LOCAL.size + names + extra
            if info.flag_bits & 1:
                yield Member(name, info.file_size, offset, fault="it is encrypted")
            elif info.compress_type == zipfile.ZIP_STORED:
                yield Member(name, info.file_size, offset)
            elif info.compress_type == zipfile.ZIP_DEFLATED:
                yield Member(name, info.file_size, offset, info.compress_size)
            else:
                what = f"it is compressed by method {info.compress_type}; only deflate is read"
                yield Member(name, info.file_size, offset, fault=what)


def _unique(members: list[Member]) -> list[Member]:
    """Give members with the name of an earlier one a name with their number."""
    seen: dict[str, int] = {}
    return [member._replace(name=numbered(member.name, seen)) for member in members]


def open_member(file: Path, version: str) -> Blob:
    """The bytes of the member that has this `source_version` in an archive."""
    member, _, archive = version.partition("@")
    size, _, rest = member.partition("-")
    offset, _, packed = rest.partition("z")
    return blob_of(file, archive, int(size), int(offset), int(packed) if packed else None)


def blob_of(file: Path, archive: str | None, size: int, offset: int, packed: int | None) -> Blob:
    """The bytes of a member; `archive` is the version of the file, if only that is wanted."""
    if packed is None:
        return RangeBlob(str(file), archive, offset, size)
    return DeflatedBlob(str(file), archive, offset, size, packed)


def current(file: Path, name: str, index: dict[str, Member]) -> Blob:
    """The bytes of a member by its name, in whatever version the archive has now."""
    member = index.get(name)
    if member is None:
        return FaultBlob(PixelFault("unreadable", f"{file.name} has no member {name}"))
    if member.fault is not None:
        return FaultBlob(PixelFault("unreadable", member.fault))
    return blob_of(file, None, member.size, member.offset, member.packed)


class DeflatedBlob(Blob):
    """A deflated member of a zip file: `size` bytes, which have `packed` bytes from `offset`."""

    __slots__ = ("_file", "_offset", "_packed", "_size", "path", "version")

    def __init__(self, file: str, version: str | None, offset: int, size: int, packed: int) -> None:
        self._file, self._offset, self._size, self._packed = file, offset, size, packed
        self.version = version
        self.path = None

    @property
    def size(self) -> int:
        return self._size

    def at(self, offset: int, count: int) -> bytes:
        return self._inflated(offset + count)[offset:]

    def read(self, limits: PixelLimits | None = None) -> bytes:
        check_bytes(self._size, limits or PixelLimits())
        data = self._inflated(self._size)
        if len(data) != self._size:
            raise PixelFault("truncated", f"{len(data):,} of {self._size:,} bytes are in the archive")
        return data

    def check_unchanged(self) -> None:
        if self.version is not None:
            stat_file(self._file, self.version)

    def _inflated(self, count: int) -> bytes:
        """The first `count` bytes, and no more, whatever the data would expand to."""
        # deflated bytes are rarely more than the bytes themselves: what is needed of them is read in steps
        inflate = zlib.decompressobj(-15)
        found, place, step = b"", 0, max(1 << 14, min(count, self._packed))
        with open_version(self._file, self.version) as handle:
            try:
                while len(found) < count and place < self._packed and not inflate.eof:
                    data = os.pread(handle, min(step, self._packed - place), self._offset + place)
                    if not data:
                        break
                    place += len(data)
                    found += inflate.decompress(data, count - len(found))
            except zlib.error as error:
                raise PixelFault("corrupt", f"its deflated bytes are damaged ({one_line(error)})") from None
        return found


def archive_version(file: Path) -> str:
    """The version of an archive now. Raises OSError if it cannot be looked at."""
    return file_version(os.stat(file))
