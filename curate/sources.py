"""List a source folder: every regular file below it, with its uri and its sidecars.

Links are never resolved: a link to a file is a sample of its own, a link to a folder is not entered. Sockets,
pipes and devices are counted and never opened. Only folders are read here, and `stat` is called once per
file.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from uhr.base.errors import UserError
from uhr.base.files import file_version
from uhr.base.formatting import human_bytes
from uhr.curate.faults import BROKEN_LINK
from uhr.curate.sidecars import sidecars_in
from uhr.manifests.uris import uri_of

ITEMS = pa.schema(
    [
        pa.field("uri", pa.string()),
        pa.field("source_version", pa.string()),
        pa.field(
            "sidecars", pa.list_(pa.string()), metadata={"meaning": "uris of caption and metadata files"}
        ),
        pa.field("sidecar_versions", pa.string()),
        pa.field("fault", pa.string(), metadata={"meaning": "why there is nothing to read"}),
        pa.field("fault_words", pa.string()),
    ]
)
"""One row per regular file (or link to one, or broken link), sorted by uri. `fault` is null if the file can
be read; `fault_words` is its message. Names and messages are part of the hash of a run's inputs, and must not
change.
"""

NOT_OPENED = ("linked_folders", "unreadable_folders", "sockets", "pipes", "devices")


@dataclass
class Listing:
    """A source as it was listed.

    `items` has the schema ITEMS; `not_opened` counts what was found and not opened, by the names of
    NOT_OPENED; `bytes` is the size of all files; `unreadable` names the folders that could not be read.
    """

    root: Path
    items: pa.Table
    not_opened: dict[str, int]
    bytes: int
    unreadable: list[str] = field(default_factory=list)

    def first(self, count: int) -> Listing:
        """Return a listing of the first `count` items; its `bytes` are theirs and their sidecars'."""
        items = self.items.slice(0, count)
        sizes: dict[str, int] = {}  # by uri: two images may share a sidecar
        for row in items.to_pylist():
            uris = [row["uri"], *(row["sidecars"] or ())]
            versions = [row["source_version"], *(row["sidecar_versions"] or "").split(",")]
            sizes.update((u, int(v.partition("-")[0])) for u, v in zip(uris, versions, strict=False) if v)
        return replace(self, items=items, bytes=sum(sizes.values()))


def check_source(source: Path) -> None:
    """Raise UserError if the source does not exist or is not a folder."""
    if not source.exists():
        raise UserError(f"the source {source} does not exist", "name a folder of images with --source")
    if not source.is_dir():
        raise UserError(f"the source {source} is a file", "name the folder that contains it")


def list_folder(source: Path, advance: Callable[[int], None] | None = None) -> Listing:
    """List every file below `source`, sorted by uri. `advance` is called with each folder's number of files.

    Raises UserError if the source does not exist, is not a folder, or contains no file.
    """
    check_source(source)
    root = Path(os.path.abspath(source))
    walk = _Walk(str(root))
    for count in walk.folders():
        if advance is not None:
            advance(count)
    if not walk.rows:
        not_opened = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in walk.not_opened.items() if n)
        raise UserError(
            f"the source {source} contains no file{f' ({not_opened})' if not_opened else ''}",
            "name a folder of images",
        )
    walk.rows.sort()
    columns = list(zip(*walk.rows, strict=True))
    items = pa.table([pa.array(c, f.type) for c, f in zip(columns, ITEMS, strict=True)], schema=ITEMS)
    not_opened = {name: walk.not_opened[name] for name in NOT_OPENED}
    return Listing(root, items, not_opened, walk.bytes, walk.unreadable)


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


def check_no_overlap(source: Path, out: Path) -> None:
    """Raise UserError if one folder is inside the other: a run must not curate its own output."""
    a, b = source.resolve(), out.resolve()
    if a == b or a in b.parents:
        raise UserError(f"--out {out} is inside the source {source}", "name a folder outside it")
    if b in a.parents:
        raise UserError(f"the source {source} is inside --out {out}", "name a folder outside it")


def describe(listing: Listing) -> str:
    """Return a short text such as `1,234 files, 5.6 GB`."""
    count = listing.items.num_rows
    return f"{count:,} {'file' if count == 1 else 'files'}, {human_bytes(listing.bytes)}"
