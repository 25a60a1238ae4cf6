"""Archives as sources: zip and tar files that are listed as folders, and the shards of WebDataset."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.base.paths import in_store, text_place, unescaped
from uhr.base.store import StoreError
from uhr.manifests.sources.base import Advance, AnyPlace, Item, Listing, Source, items_table, unnumbered
from uhr.manifests.sources.blobs import Blob, FaultBlob, size_of
from uhr.manifests.sources.files import places
from uhr.manifests.sources.files.members import (
    COMPRESSED,
    TAR,
    ZIP,
    Contents,
    Index,
    Member,
    contents,
    open_member,
)
from uhr.manifests.sources.files.places import File
from uhr.manifests.sources.pairing import IMAGE_SUFFIXES, sidecars_in
from uhr.manifests.uris import uri_of
from uhr.pixels.types import PixelFault

AT_ONCE = 8
"""Archives of a bucket that are listed at once: the time goes into waiting for answers."""


class Archives(Source):
    """Zip and tar files. A member has the uri `ARCHIVE/MEMBER`; sidecars are paired as in a folder.

    path: an archive, a folder with archives at any depth, or a pattern (`set-{000..015}.tar`, `*.zip`); also
    in a bucket.
    """

    kind = "archives"

    path: AnyPlace

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return (TAR, ZIP)

    @property
    def _endings(self) -> tuple[str, ...]:
        return (*self._suffixes, *COMPRESSED)

    @property
    def place(self) -> Path | str:
        return text_place(self.path)

    @cached_property
    def _base(self) -> Path | str:
        """The folder or prefix that uris are relative to."""
        return places.base_of(self.path, self._endings)

    @property
    def local_paths(self) -> Sequence[Path]:
        return (self.place,) if isinstance(self.place, Path) and self.place.is_dir() else ()

    @property
    def addresses(self) -> Sequence[str]:
        return (self._base,) if isinstance(self._base, str) and self._base == self.path.rstrip("/") else ()

    def lane(self, item: Item) -> str | None:
        return places.lane_of(self.path)

    @property
    def files(self) -> list[File]:
        """The archives, sorted. Raises UserError if there is none, or if one is compressed."""
        found = places.found(self.path, self._endings, "archives")
        for file in found:
            if file.name.lower().endswith(COMPRESSED):
                what = f"{file} is compressed, so that its members cannot be read at their place"
                raise UserError(what, "unpack it to a .tar or a folder first")
            if not file.name.lower().endswith(self._suffixes):
                raise UserError(f"{file} is not a {' or '.join(self._suffixes)} file", "name an archive")
        if not found:
            names = " or ".join(self._suffixes)
            raise UserError(
                f"there is no {names} file at {self.place}", "name an archive, or a folder of them"
            )
        return found

    def check(self) -> None:
        _ = self.files

    def _list(self, advance: Advance) -> Listing:
        rows: list[tuple[Any, ...]] = []
        counts: Counter[str] = Counter()
        size = 0
        unreadable: list[str] = []
        for file, found in self._contents():
            relative, version = places.relative(file.place, self._base), found.version or ""
            size += size_of(version)
            counts["links_and_devices_in_archives"] += found.others
            if found.damage is not None:
                fault = "unreadable", f"the archive cannot be read to its end ({found.damage})"
                rows.append((relative, found.version, None, None, *fault))
                unreadable.append(f"{relative} ({found.damage})")
            members, others = self._rows(found.members)
            counts["other_members"] += others
            for member, sidecars in members:
                fault = (None, None) if member.fault is None else ("unreadable", member.fault)
                cars = [f"{relative}/{uri_of(car.name)}" for car in sidecars] or None
                versions = ",".join(car.version(version) for car in sidecars) or None
                uri = f"{relative}/{uri_of(member.name)}"
                rows.append((uri, member.version(version), cars, versions, *fault))
            advance(len(members))
        if not rows:
            raise UserError(f"the archives at {self.place} contain no file", "name archives of images")
        return Listing(self, items_table(rows), {k: n for k, n in counts.items() if n}, size, unreadable)

    def _contents(self) -> Iterator[tuple[File, Contents]]:
        """The archives, each with what is in it. Raises UserError if a bucket does not give one."""
        files = iter(self.files)
        pool = ThreadPoolExecutor(AT_ONCE if in_store(self.path) else 1)
        try:
            # no more than that many are listed before their rows are made
            while some := list(itertools.islice(files, AT_ONCE)):
                yield from zip(some, pool.map(_contents, some), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def _rows(self, members: list[Member]) -> tuple[list[tuple[Member, list[Member]]], int]:
        """The members that are items, each with its sidecars; and the number of those that are neither."""
        folders: dict[str, dict[str, Member]] = {}
        for member in members:
            folder, _, name = member.name.rpartition("/")
            folders.setdefault(folder, {})[name] = member
        found: list[tuple[Member, list[Member]]] = []
        for names in folders.values():
            owned = sidecars_in(names, (name for name, member in names.items() if member.fault is None))
            used = {name for cars in owned.values() for name in cars}
            for name, member in names.items():
                if name not in used:
                    found.append((member, [names[car] for car in owned.get(name, ())]))
        return found, 0

    def open(self, item: Item) -> Blob:
        version = item.get("source_version")
        try:
            file, name = self._parted(item["uri"])
            if version is not None and "@" in version:
                return open_member(file, version)
            place = str(file)
            if place not in self._indexes:
                self._indexes[place] = Index(file)
        except StoreError as error:
            return FaultBlob(PixelFault("unavailable", error.what))
        except PixelFault as fault:
            return FaultBlob(fault)
        return self._indexes[place].open(name)

    @cached_property
    def _indexes(self) -> dict[str, Index]:
        """The members by name of the archives that were opened for a row without its version."""
        return {}

    @cached_property
    def _known(self) -> dict[str, File]:
        return {}

    def _parted(self, uri: str) -> tuple[File, str]:
        """The archive and the name of the member. Raises UserError if no part of the uri is an archive."""
        matches = list(re.finditer(r"\.(?:tar|zip)(?=/|$)", uri, re.IGNORECASE))
        # what else fails of an object is a fault of its rows: no request is needed to know which one it is
        certain = len(matches) == 1 and in_store(self.path)
        for match in matches:
            head = uri[: match.end()]
            if head not in self._known:
                if ".." in Path(unescaped(head)).parts:
                    continue
                file = places.below(self._base, head)
                if not certain and not file.exists():
                    continue
                self._known[head] = file
            return self._known[head], unescaped(uri[match.end() + 1 :])
        raise UserError(f"no archive of '{uri}' is at {self.place}", "restore the archive")


class WebDataset(Archives):
    """The tar files of a WebDataset. Members with one key are one sample: its images are the items, their
    captions and JSON go into their rows, and members of other kinds are counted.
    """

    kind = "webdataset"

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return (TAR,)

    def _rows(self, members: list[Member]) -> tuple[list[tuple[Member, list[Member]]], int]:
        rows, _ = super()._rows(members)
        with_image = {_key(member.name) for member, _ in rows if _is_image(member.name)}
        # what belongs to a sample with an image is no item; a sample without one has a row that fails
        found = [row for row in rows if _is_image(row[0].name) or _key(row[0].name) not in with_image]
        return found, len(rows) - len(found)


def _key(name: str) -> str:
    """The key of a member: its name up to the first dot behind the last slash."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _is_image(name: str) -> bool:
    return unnumbered(name).rpartition(".")[2].lower() in IMAGE_SUFFIXES


def _contents(file: File) -> Contents:
    try:
        return contents(file)
    except PixelFault as fault:
        raise UserError(f"cannot list {fault.message}", "repeat the command later") from None
