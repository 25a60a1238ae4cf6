"""Files of this machine and objects of a bucket, with one interface, and which of them a text names."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import posixpath
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from uhr.base.errors import UserError
from uhr.base.files import file_version
from uhr.base.paths import in_store, text_path, unescaped
from uhr.base.store import NoBucket, ObjectStore
from uhr.manifests.sources.blobs import Blob, LocalBlob, S3Blob
from uhr.manifests.sources.files.ranges import RangeReader
from uhr.manifests.uris import path_of, uri_of

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SPECIAL = re.compile(r"[*?\[{]")


class File(ABC):
    """A file that may exist. `place`: its path, or its address in a bucket; the text of a File is that."""

    place: Path | str

    @property
    def name(self) -> str:
        return os.fspath(self.place).rpartition("/")[2]

    @abstractmethod
    def version(self) -> str:
        """Its version now, which begins with its size. Raises OSError or StoreError if there is none."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is such a file now. Raises StoreError."""

    @abstractmethod
    def blob(self, version: str | None) -> Blob:
        """Its bytes, as of a version or as they are. Nothing is read yet."""

    @abstractmethod
    def opened(self, version: str) -> IO[Any]:
        """Open it for reading at any place. Raises OSError or PixelFault, also while it is read."""

    def __str__(self) -> str:
        return str(self.place)


class LocalFile(File):
    """A file of this machine."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def version(self) -> str:
        return file_version(os.stat(self.place))

    def exists(self) -> bool:
        return os.path.isfile(self.place)

    def blob(self, version: str | None) -> Blob:
        return LocalBlob(os.fspath(self.place), version)

    def opened(self, version: str) -> IO[Any]:
        return open(self.place, "rb")


class ObjectFile(File):
    """An object of a bucket. listed: its version, where it was listed."""

    def __init__(self, place: str, listed: str | None = None) -> None:
        self.place = place
        self._listed = listed

    def version(self) -> str:
        if self._listed is not None:
            return self._listed
        store, name = self._stored()
        return store.version(name)

    def exists(self) -> bool:
        try:
            return bool(self.version())
        except FileNotFoundError:
            return False

    def blob(self, version: str | None) -> Blob:
        return S3Blob(*self._stored(), version)

    def opened(self, version: str) -> IO[Any]:
        return cast("IO[Any]", RangeReader(self.blob(version)))

    def _stored(self) -> tuple[ObjectStore, str]:
        # from the bucket: a name may have empty parts, which a prefix would lose
        bucket, _, name = str(self.place).removeprefix("s3://").partition("/")
        if not name:
            raise UserError(f"the source {self.place} names no object", "write it as s3://bucket/name")
        return ObjectStore(f"s3://{bucket}"), name


def below(base: Path | str, uri: str) -> File:
    """The file `uri` below a folder or a prefix. Raises UserError if it would be outside of that."""
    if not in_store(base):
        return LocalFile(path_of(Path(base), uri))
    name = unescaped(uri)
    if name.startswith("/") or ".." in name.split("/"):
        raise UserError(f"uri '{uri}' is outside of the source {base}", "the manifest was not made by uhr")
    return ObjectFile(f"{base}/{name}")


def is_single(text: str, suffixes: Sequence[str]) -> bool:
    """Whether an address in a bucket names one object, not a prefix: it ends with one of the suffixes."""
    return _SPECIAL.search(text) is None and text.lower().endswith(tuple(suffixes))


def base_of(text: str, suffixes: Sequence[str]) -> Path | str:
    """The folder or prefix that the names of the files are relative to which `found` finds."""
    if not in_store(text):
        place = text_path(text)
        return place if place.is_dir() else Path(os.path.dirname(_before_pattern(os.fspath(place))))
    address = text.rstrip("/")
    pattern = _SPECIAL.search(address) is not None
    if pattern or is_single(address, suffixes):
        return _before_pattern(address).rpartition("/")[0]
    return address


def _before_pattern(text: str) -> str:
    return _SPECIAL.split(text, maxsplit=1)[0]


def found(text: str, suffixes: Sequence[str], what: str) -> list[File]:
    """The files that a text names, sorted: one, those below a folder or prefix at any depth that end with one
    of the suffixes in any case, or those of a pattern (`set-{000..015}.tar`, `part-*.parquet`).

    Raises UserError if some of the names that braces expand to do not exist; `what` says what they are.
    """
    if in_store(text):
        named = _found_in_bucket(text.rstrip("/"), suffixes)
    else:
        named = _found_here(text_path(text), suffixes)
    files = {str(file): file for each in named.values() for file in each}
    absent = [pattern for pattern, each in named.items() if not each]
    if files and absent:
        more = ", ...)" if len(absent) > 1 else ")"
        message = f"{len(absent)} of the {len(named)} {what} at {text} do not exist ({absent[0]}{more}"
        raise UserError(message, "copy them there, or name fewer")
    return [files[place] for place in sorted(files, key=lambda place: place.split("/"))]


def _found_here(place: Path, suffixes: Sequence[str]) -> dict[str, list[File]]:
    ends = tuple(suffixes)
    if place.is_dir():
        inside = [path for path in place.rglob("*") if path.name.lower().endswith(ends) and path.is_file()]
        return {str(place): [LocalFile(path) for path in inside]}
    if place.exists():
        return {str(place): [LocalFile(place)]}
    patterns = _expanded(os.fspath(place))
    return {name: [LocalFile(Path(path)) for path in glob.glob(name, recursive=True)] for name in patterns}


def _found_in_bucket(address: str, suffixes: Sequence[str]) -> dict[str, list[File]]:
    is_pattern, ends = _SPECIAL.search(address) is not None, tuple(suffixes)
    if address.lower().endswith(ends):
        with contextlib.suppress(FileNotFoundError):
            return {address: [ObjectFile(address, ObjectFile(address).version())]}
        if not is_pattern:
            return {address: []}
    # what has exactly this name comes before what the name is a pattern of, as on this machine
    versions = ObjectStore(address).versions()
    if versions or not is_pattern:
        names = [name for name in versions if name.lower().endswith(ends)]
        return {address: [ObjectFile(f"{address}/{name}", versions[name]) for name in names]}
    folder, _, start = _before_pattern(address).rpartition("/")
    versions = ObjectStore(folder).versions(start)
    parts = {name: name.split("/") for name in versions}
    named: dict[str, list[File]] = {}
    for pattern in _expanded(address):
        own = pattern[len(folder) + 1 :]
        if glob.has_magic(own):
            names = [name for name in versions if _matches(parts[name], own.split("/"))]
        else:
            names = [own] if own in versions else []
        named[pattern] = [ObjectFile(f"{folder}/{name}", versions[name]) for name in names]
    return named


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a name is of a pattern, as `glob` decides it: `**` is any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _expanded(pattern: str) -> Iterator[str]:
    """Expand `{000..015}`, as the shards of WebDataset are named."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        middle = str(number).zfill(len(first))
        yield from _expanded(f"{pattern[: match.start()]}{middle}{pattern[match.end() :]}")


def joined(base: Path | str, value: str) -> Path | str:
    """The path or address that a text in a table names: from `base`, or if it is a whole address, as it is.

    Raises ValueError for other URLs, and for what is outside of the bucket of `base`: no table there names
    files of this machine.
    """
    if in_store(value):
        if re.fullmatch(r"s3://[^/]+/.*[^/]", value, re.DOTALL) is None:
            raise ValueError(f"{value} is no object of a bucket")
        return value
    if not in_store(base):
        return Path(os.path.normpath(os.path.join(base, value)))
    bucket, _, prefix = base.removeprefix("s3://").partition("/")
    name = posixpath.normpath(posixpath.join(prefix, value))
    if name.startswith("/") or name.split("/")[0] in ("..", "."):
        raise ValueError(f"{value} is no object of s3://{bucket}")
    return f"s3://{bucket}/{name}"


def relative(place: Path | str, base: Path | str) -> str:
    """The uri of a file below a folder or prefix; the whole address of an object that is not below it."""
    if not in_store(place) and not in_store(base):
        return uri_of(os.path.relpath(place, base))
    inside = str(place).removeprefix(f"{str(base).rstrip('/')}/") if in_store(base) else str(place)
    # what `below` would refuse has its whole address
    return uri_of(str(place) if inside.startswith("/") or ".." in inside.split("/") else inside)


def versions_of(places: Sequence[Path | str]) -> dict[Path | str, str]:
    """The versions now of those files that exist. Those of a bucket are listed together, by the beginning
    that their names have in common."""
    found: dict[Path | str, str] = {}
    names: dict[str, set[str]] = {}
    for place in places:
        if in_store(place):
            bucket, _, name = place.removeprefix("s3://").partition("/")
            names.setdefault(bucket, set()).add(name)
        else:
            with contextlib.suppress(OSError):
                found[place] = file_version(os.stat(place))
    for bucket, own in names.items():
        start = os.path.commonprefix(sorted(own))  # noqa: RUF071 - of texts, not of folders
        with contextlib.suppress(NoBucket):
            versions = ObjectStore(f"s3://{bucket}").versions(start)
            found |= {f"s3://{bucket}/{name}": versions[name] for name in own & versions.keys()}
    return found


def lane_of(place: Path | str) -> str | None:
    """What else fails where a file at this place fails: its bucket; None for files of this machine."""
    return f"bucket {place.removeprefix('s3://').partition('/')[0]}" if in_store(place) else None


def file_at(place: Path | str) -> File:
    """The file at a path or an address."""
    return ObjectFile(place) if in_store(place) else LocalFile(Path(place))
