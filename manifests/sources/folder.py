"""A folder as a source: every regular file below it, with its uri and its sidecars.

Links are never resolved: a link to a file is a sample of its own, a link to a folder is not entered. Sockets,
pipes and devices are counted and never opened. Only folders are read here, and `stat` is called once per
file.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from uhr.base.errors import UserError
from uhr.base.files import file_version
from uhr.base.paths import is_url, path_text, text_path, unescaped
from uhr.manifests.sources import tables
from uhr.manifests.sources.base import (
    BROKEN_LINK,
    NOT_OPENED,
    Advance,
    Item,
    Listing,
    LocalPath,
    Source,
    items_table,
    with_given,
)
from uhr.manifests.sources.blobs import LocalBlob
from uhr.manifests.sources.pairing import sidecars_in
from uhr.manifests.uris import path_of, uri_of

_KINDS = {
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
            kinds = _KINDS.get(self.place.suffix.lower())
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
        rows, given, unmatched, replaced = self._metadata(walk.rows)
        items = items_table(rows)
        if given:
            items = with_given(items, map(given.get, items["uri"].to_pylist()))
        if unmatched:
            not_opened["unmatched_rows"] = unmatched
        if replaced:
            not_opened["replaced_rows"] = replaced
        return Listing(self, items, not_opened, walk.bytes, walk.unreadable)

    def _metadata(self, rows: list[_Row]) -> tuple[list[_Row], dict[str, str], int, int]:
        """Read the tables METADATA of any folder, which name files in their column FILE_NAME.

        Returns the rows without those of the tables, the values of each file by its uri, and the numbers of
        rows of tables without a file and of those that another row for the same file replaced. A table that
        cannot be read stays a row, with the fault.
        """
        found: dict[str, str] = {}
        replaced = 0
        left: list[_Row] = []
        for row in rows:
            folder, slash, name = row[0].rpartition("/")
            if name not in tables.METADATA or row[4] is not None:
                left.append(row)
                continue
            try:
                table = tables.read_table(path_of(self.place, row[0]))
            except UserError as error:
                left.append((*row[:4], "unreadable", error.what))
                continue
            if tables.FILE_NAME not in table.schema.names:
                left.append(row)
                continue
            named: dict[str, str] = {}
            replaced += tables.add_by_key(named, table, tables.FILE_NAME)
            for file, values in named.items():
                found[uri_of(posixpath.normpath(f"{unescaped(folder)}{slash}{file}"))] = values
        if not found:
            return left, {}, 0, 0
        return left, found, len(found.keys() - {row[0] for row in left}), replaced

    def open(self, item: Item) -> LocalBlob:
        uri = item["uri"]
        # a plain join if nothing is escaped, as nearly always: ten times as fast
        plain = "%" not in uri and ".." not in uri
        path = f"{self._root}/{uri}" if plain else str(path_of(self.place, uri))
        return LocalBlob(path, item.get("source_version"))

    @cached_property
    def _root(self) -> str:
        return str(self.place)


_Row = tuple[str, str | None, list[str] | None, str | None, str | None, str | None]


class _Walk:
    """One pass over the tree; `rows` are tuples in the order of `ITEMS`."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.rows: list[_Row] = []
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
