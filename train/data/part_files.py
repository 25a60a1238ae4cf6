"""Where the bytes of Parquet parts are: in a folder of this machine, or elsewhere (`store_parts`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from uhr.base import parquet
from uhr.manifests.info import Part


class PartFiles(Protocol):
    """The files of Parquet parts; threads may share it."""

    remote: bool
    """Whether row groups are fetched from another machine, so that it is worth reading far ahead."""

    def name(self, part: Part) -> str:
        """The path or address of a part, for messages."""
        ...

    def footer(self, part: Part) -> pq.FileMetaData:
        """Read the footer of a part."""
        ...

    def key(self, part: Part, group: int) -> str:
        """What identifies the file in which a row group is."""
        ...

    def mapped(self, part: Part, group: int) -> pa.Buffer:
        """The bytes of a part, mapped into memory: at least the row group and the footer are there, and in
        their places.
        """
        ...

    def prepare(self, groups: Iterable[tuple[Part, int]]) -> None:
        """Make it quick to map these row groups; nothing where they are on this machine."""
        ...

    def prepare_footers(self, parts: Iterable[Part]) -> None:
        """The same for footers."""
        ...

    def discard(self, part: Part, group: int) -> bool:
        """Remove a copy of a row group that turned out to be damaged. Returns whether there was one: the next
        `mapped` then fetches it again.
        """
        ...


class FolderParts:
    """Parts in a folder of this machine."""

    remote = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def name(self, part: Part) -> str:
        return str(self._folder / part.path)

    def footer(self, part: Part) -> pq.FileMetaData:
        with parquet.opened(self._folder / part.path) as file:
            return file.metadata

    def key(self, part: Part, group: int) -> str:
        return part.path

    def mapped(self, part: Part, group: int) -> pa.Buffer:
        return parquet.mapped_bytes(self._folder / part.path)

    def prepare(self, groups: Iterable[tuple[Part, int]]) -> None:
        return

    def prepare_footers(self, parts: Iterable[Part]) -> None:
        return

    def discard(self, part: Part, group: int) -> bool:
        return False
