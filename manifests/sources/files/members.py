"""The members of a tar or zip file, and where their bytes are. Nothing is unpacked."""

from __future__ import annotations

import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from uhr.base.errors import one_line
from uhr.manifests.sources.base import numbered
from uhr.manifests.sources.blobs import Blob, FaultBlob, RangeBlob
from uhr.manifests.sources.files.places import File
from uhr.pixels.decode import PixelLimits, check_bytes
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
    """What an archive of a version has: members by unique name, the number of links, devices and folders in
    it, and why it could not be read to its end."""

    version: str | None
    members: list[Member]
    others: int
    damage: str | None


def contents(file: File) -> Contents:
    """List an archive. A damaged one has the members up to the damage, and one that cannot be looked at has
    no version. Of an archive in a bucket only the blocks that its headers are in are read.

    Raises PixelFault("unavailable") and StoreError if its bucket fails.
    """
    found: list[Member] = []
    others, damage, version = 0, None, None
    try:
        version = file.version()
        with file.opened(version) as raw:
            for member in _zip(raw) if file.name.lower().endswith(ZIP) else _tar(raw):
                if member is None:
                    others += 1
                else:
                    found.append(member)
    except OSError as error:
        damage = error.strerror or one_line(error) or type(error).__name__
    except DAMAGED as error:
        damage = one_line(error) or type(error).__name__
    except PixelFault as fault:
        if fault.kind == "unavailable":
            raise
        damage = fault.message
    return Contents(version, _unique(found), others, damage)


def _tar(raw: IO[Any]) -> Iterator[Member | None]:
    with tarfile.open(fileobj=raw, mode="r:") as tar:
        while (member := tar.next()) is not None:
            name = member.name.removeprefix("./").lstrip("/")
            if member.isreg() and member.issparse():
                yield Member(name, member.size, 0, fault="it is stored as a sparse file")
            elif member.isreg():
                yield Member(name, member.size, member.offset_data)
            elif not member.isdir():
                yield None
        end = tar.offset
    raw.seek(end)
    if any(raw.read(_BLOCK)):
        # tarfile takes a damaged header for the end
        raise tarfile.ReadError(f"the header at byte {end:,} is damaged")


def _zip(raw: IO[Any]) -> Iterator[Member | None]:
    with zipfile.ZipFile(raw) as packed:
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


def open_member(file: File, version: str) -> Blob:
    """The bytes of the member that has this `source_version` in an archive."""
    member, _, archive = version.partition("@")
    size, _, rest = member.partition("-")
    offset, _, packed = rest.partition("z")
    return _blob(file.blob(archive), int(size), int(offset), int(packed) if packed else None)


def _blob(whole: Blob, size: int, offset: int, packed: int | None) -> Blob:
    return RangeBlob(whole, offset, size) if packed is None else DeflatedBlob(whole, offset, size, packed)


class Index:
    """The members of one archive by name, in the version that it has now."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._contents = contents(file)
        self._members = {member.name: member for member in self._contents.members}

    def open(self, name: str) -> Blob:
        """The bytes of a member."""
        member = self._members.get(name)
        if member is None:
            damage = "" if self._contents.damage is None else f" ({self._contents.damage})"
            return FaultBlob(PixelFault("unreadable", f"{self._file.name} has no member {name}{damage}"))
        if member.fault is not None:
            return FaultBlob(PixelFault("unreadable", member.fault))
        whole = self._file.blob(self._contents.version)
        return _blob(whole, member.size, member.offset, member.packed)


class DeflatedBlob(Blob):
    """A deflated member of a zip file: `size` bytes, which have `packed` bytes from `offset`."""

    __slots__ = ("_offset", "_packed", "_size", "_whole", "path", "version")

    def __init__(self, whole: Blob, offset: int, size: int, packed: int) -> None:
        self._whole, self._offset, self._size, self._packed = whole, offset, size, packed
        self.version = whole.version
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
        self._whole.check_unchanged()

    def _inflated(self, count: int) -> bytes:
        """The first `count` bytes, and no more, whatever the data would expand to."""
        # deflated bytes are rarely more than the bytes themselves: what is needed of them is read in steps
        inflate = zlib.decompressobj(-15)
        found, place, step = b"", 0, max(1 << 14, min(count, self._packed))
        with self._whole.reading() as at:
            try:
                while len(found) < count and place < self._packed and not inflate.eof:
                    data = at(self._offset + place, min(step, self._packed - place))
                    if not data:
                        break
                    place += len(data)
                    found += inflate.decompress(data, count - len(found))
            except zlib.error as error:
                raise PixelFault("corrupt", f"its deflated bytes are damaged ({one_line(error)})") from None
        return found
