"""Archives as sources: zip and tar files that are listed as folders, and the shards of WebDataset."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.base.paths import text_path, unescaped
from uhr.manifests.sources import archive_files
from uhr.manifests.sources.archive_files import COMPRESSED, TAR, ZIP, Member
from uhr.manifests.sources.base import (
    Advance,
    Item,
    Listing,
    LocalPath,
    Source,
    items_table,
)
from uhr.manifests.sources.blobs import Blob
from uhr.manifests.sources.pairing import IMAGE_SUFFIXES, sidecars_in
from uhr.manifests.uris import uri_of

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Archives(Source):
    """Zip and tar files. A member has the uri `ARCHIVE/MEMBER`; sidecars are paired as in a folder.

    path: an archive, a folder with archives at any depth, or a pattern (`set-{000..015}.tar`, `*.zip`).
    """

    kind = "archives"

    path: LocalPath

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return (TAR, ZIP)

    @property
    def place(self) -> Path:
        return text_path(self.path)

    @cached_property
    def _base(self) -> Path:
        """The folder that uris are relative to."""
        if self.place.is_dir():
            return self.place
        plain = re.split(r"[*?\[{]", os.fspath(self.place), maxsplit=1)[0]
        return Path(plain).parent if plain == os.fspath(self.place) else Path(os.path.dirname(f"{plain}x"))

    @property
    def local_paths(self) -> Sequence[Path]:
        return (self._base,) if self.place.is_dir() else ()

    @property
    def files(self) -> list[Path]:
        """The archives, sorted. Raises UserError if there is none, or if one is compressed."""
        if self.place.is_dir():
            found = [path for path in self.place.rglob("*") if path.is_file()]
            found = [path for path in found if path.name.lower().endswith((*self._suffixes, *COMPRESSED))]
        elif self.place.exists():
            found = [self.place]
        else:
            named = {pattern: glob.glob(pattern) for pattern in _expanded(os.fspath(self.place))}
            found = [Path(name) for names in named.values() for name in names]
            absent = [pattern for pattern, names in named.items() if not names]
            if found and absent:
                what = f"{len(absent)} of the {len(named)} archives at {self.place} do not exist ({absent[0]}"
                and_others = ", ...)" if len(absent) > 1 else ")"
                raise UserError(what + and_others, "copy them there, or name fewer")
        for path in sorted(found):
            if path.name.lower().endswith(COMPRESSED):
                what = f"{path} is compressed, so that its members cannot be read at their place"
                raise UserError(what, "unpack it to a .tar or a folder first")
            if not path.name.lower().endswith(self._suffixes):
                raise UserError(f"{path} is not a {' or '.join(self._suffixes)} file", "name an archive")
        if not found:
            names = " or ".join(self._suffixes)
            raise UserError(
                f"there is no {names} file at {self.place}", "name an archive, or a folder of them"
            )
        return sorted(found)

    def check(self) -> None:
        assert self.files

    def _list(self, advance: Advance) -> Listing:
        rows: list[tuple[Any, ...]] = []
        counts: Counter[str] = Counter()
        size = 0
        unreadable: list[str] = []
        for file in self.files:
            relative = os.path.relpath(file, self._base)
            try:
                version = archive_files.archive_version(file)
                size += file.stat().st_size
                found = archive_files.contents(file)
            except OSError as error:
                found = archive_files.Contents([], 0, str(error.strerror))
                version = ""
            counts["links_and_devices_in_archives"] += found.others
            if found.damage is not None:
                fault = "unreadable", f"the archive cannot be read to its end ({found.damage})"
                rows.append((uri_of(relative), version or None, None, None, *fault))
                unreadable.append(f"{relative} ({found.damage})")
            members, others = self._rows(found.members)
            counts["other_members"] += others
            for member, sidecars in members:
                fault = (None, None) if member.fault is None else ("unreadable", member.fault)
                cars = [uri_of(f"{relative}/{car.name}") for car in sidecars] or None
                versions = ",".join(car.version(version) for car in sidecars) or None
                uri = uri_of(f"{relative}/{member.name}")
                rows.append((uri, member.version(version), cars, versions, *fault))
            advance(len(members))
        if not rows:
            raise UserError(f"the archives at {self.place} contain no file", "name archives of images")
        return Listing(self, items_table(rows), {k: n for k, n in counts.items() if n}, size, unreadable)

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
        file, name = self._parted(item["uri"])
        version = item.get("source_version")
        if version is not None and "@" in version:
            return archive_files.open_member(file, version)
        if file not in self._indexes:
            self._indexes[file] = {m.name: m for m in archive_files.contents(file).members}
        return archive_files.current(file, name, self._indexes[file])

    @cached_property
    def _indexes(self) -> dict[Path, dict[str, Member]]:
        """The members by name of the archives that were opened for a row without its version."""
        return {}

    @cached_property
    def _known(self) -> dict[str, Path]:
        return {}

    def _parted(self, uri: str) -> tuple[Path, str]:
        """The archive and the name of the member. Raises UserError if no part of the uri is an archive."""
        for match in re.finditer(r"\.(?:tar|zip)(?=/|$)", uri, re.IGNORECASE):
            head = uri[: match.end()]
            if head not in self._known:
                file = self._base / unescaped(head)
                if not file.is_file() or ".." in Path(unescaped(head)).parts:
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
    return name.partition("#")[0].rpartition(".")[2].lower() in IMAGE_SUFFIXES


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
