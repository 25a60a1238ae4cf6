"""A folder as a source: every regular file below it, with its uri and its sidecars.

Links are never resolved: a link to a file is a sample of its own, a link to a folder is not entered. Sockets,
pipes and devices are counted and never opened. Only folders are read here, and `stat` is called once per
file.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.base.files import file_version
from uhr.base.paths import is_url, path_text, text_path
from uhr.manifests.sources import tables
from uhr.manifests.sources.base import (
    BROKEN_LINK,
    NOT_OPENED,
    Advance,
    Item,
    Listing,
    LocalPath,
    Source,
)
from uhr.manifests.sources.blobs import LocalBlob
from uhr.manifests.sources.files import metadata
from uhr.manifests.sources.pairing import sidecars_in
from uhr.manifests.uris import path_of, uri_of

KINDS = {
    **dict.fromkeys((".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt"), ("urls",)),
    ".parquet": ("parquet", "urls"),
    ".zip": ("archives",),
    ".tar": ("webdataset", "archives"),
}
"""The kinds of source that read a file, by its suffix."""


class Folder(Source):
    """A folder of this machine: every file below it is an item, or a sidecar of one."""

    kind = "folder"

    path: LocalPath

    @classmethod
    def at(cls, path: Path | str) -> Folder:
        """The source for a folder at any path."""
        return cls(path=path_text(os.path.abspath(path)))

    @classmethod
    def of_text(cls, text: str) -> Folder:
        if is_url(text):
            fix = "name a folder or s3://bucket/prefix; a list of URLs is urls:FILE"
            raise UserError(f"--source {text} is a URL, not a path", fix)
        return cls.at(text)

    @cached_property
    def place(self) -> Path:
        return text_path(self.path)

    @property
    def local_paths(self) -> Sequence[Path]:
        return (self.place,)

    @property
    def origin(self) -> dict[str, Any] | None:
        return None if self.model_fields_set == {"path"} else self.described()

    def check(self) -> None:
        """Raise UserError if the folder does not exist or is not a folder."""
        if not self.place.exists():
            raise UserError(
                f"the source {self.place} does not exist", "name a folder of images with --source"
            )
        if not self.place.is_dir():
            kinds = KINDS.get(self.place.suffix.lower())
            fix = f"write {' or '.join(f'{kind}:{self.place}' for kind in kinds)}" if kinds else None
            raise UserError(f"the source {self.place} is a file", fix or "name the folder that contains it")

    def _list(self, advance: Advance) -> Listing:
        self.check()
        walk = _Walk(str(self.place))
        for count in walk.folders():
            advance(count)
        if not walk.rows:
            not_opened = ", ".join(
                f"{n} {name.replace('_', ' ')}" for name, n in walk.not_opened.items() if n
            )
            raise UserError(
                f"the source {self.place} contains no file{f' ({not_opened})' if not_opened else ''}",
                "name a folder of images",
            )
        not_opened = {name: walk.not_opened[name] for name in NOT_OPENED}
        values = metadata.of_rows(walk.rows, lambda uri: tables.read_table(path_of(self.place, uri)))
        return Listing(self, values.items(), not_opened | values.counts, walk.bytes, walk.unreadable)

    def open(self, item: Item) -> LocalBlob:
        uri = item["uri"]
        # a plain join if nothing is escaped, as nearly always: ten times as fast
        plain = "%" not in uri and ".." not in uri
        path = f"{self._root}/{uri}" if plain else str(path_of(self.place, uri))
        return LocalBlob(path, item.get("source_version"))

    @cached_property
    def _root(self) -> str:
        return str(self.place)


class _Walk:
    """One pass over the tree; `rows` are tuples in the order of `ITEMS`."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.rows: list[metadata.Row] = []
        self.not_opened: Counter[str] = Counter()
        self.unreadable: list[str] = []
        self.bytes = 0

    def folders(self) -> Iterator[int]:
        """Visit every folder, and yield the number of files found in each."""
        waiting = [""]
        while waiting:
            below = waiting.pop()
            before = len(self.rows)
            try:
                with os.scandir(os.path.join(self._root, below)) as entries:
                    files, folders = self._sort_out(entries)
            except OSError as error:
                self.not_opened["unreadable_folders"] += 1
                self.unreadable.append(f"{uri_of(below) or '.'} ({error.strerror})")
                continue
            prefix = f"{below}/" if below else ""
            self._add(prefix, files)
            waiting.extend(prefix + name for name in folders)
            yield len(self.rows) - before

    def _sort_out(self, entries: Iterator[os.DirEntry[str]]) -> tuple[dict[str, _File], list[str]]:
        files: dict[str, _File] = {}
        folders: list[str] = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
                continue
            try:
                # the only stat of a file; of a link, the file that it leads to
                status = entry.stat()
            except OSError as error:
                files[entry.name] = _unreachable(entry, error)
                continue
            if stat.S_ISREG(status.st_mode):
                self.bytes += status.st_size
                files[entry.name] = (file_version(status), None, None)
            else:
                self.not_opened[_special(status.st_mode)] += 1
        return files, folders

    def _add(self, prefix: str, files: dict[str, _File]) -> None:
        owned = sidecars_in(files, (name for name, (_, fault, _) in files.items() if fault is None))
        sidecars = {name for names in owned.values() for name in names}
        # most names need no escaping: the prefix is checked once per folder
        plain = prefix.isascii() and "%" not in prefix
        for name, (version, fault, message) in files.items():
            if name in sidecars:
                continue
            path = prefix + name
            uri = path if plain and name.isascii() and "%" not in name else uri_of(path)
            cars = owned.get(name)
            versions = ",".join(str(files[car][0]) for car in cars) if cars else None
            uris = [uri_of(prefix + car) for car in cars] if cars else None
            self.rows.append((uri, version, uris, versions, fault, message))


_File = tuple[str | None, str | None, str | None]
"""Version (size and time), kind of fault, message of the fault."""


def _unreachable(entry: os.DirEntry[str], error: OSError) -> _File:
    if entry.is_symlink():
        return None, BROKEN_LINK, f"the link leads to nothing that can be read ({error.strerror})"
    return None, "unreadable", f"the file cannot be looked at ({error.strerror})"


def _special(mode: int) -> str:
    """Return the name of this file type in NOT_OPENED; a folder gets here only through a link."""
    if stat.S_ISDIR(mode):
        return "linked_folders"
    if stat.S_ISSOCK(mode):
        return "sockets"
    return "pipes" if stat.S_ISFIFO(mode) else "devices"
