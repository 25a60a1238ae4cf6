"""Rows of encoded folders by their keys, so that a row with the same key is copied instead of computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from uhr.base import parquet
from uhr.base.errors import UserError, one_line
from uhr.manifests.info import Part
from uhr.train.encode.stored.encoded import read_encoded


class StoredRows:
    """The rows of some Parquet parts, found by a column of keys (64 hex digits).

    Every key is in memory as 32 bytes; `get` reads rows by row group.
    """

    def __init__(self, parts: Iterable[tuple[Path, Part]], key: str) -> None:
        self._key = key
        self._files: list[Path] = []
        self._places: dict[bytes, tuple[int, int, int]] = {}
        self._last: tuple[tuple[int, int], pa.Table] | None = None
        for folder, part in parts:
            path = folder / part.path
            with _mapped(path) as file:
                if key not in file.schema_arrow.names:
                    continue
                for group in range(file.num_row_groups):
                    keys = file.read_row_group(group, columns=[key]).column(0).to_pylist()
                    for row, found in enumerate(keys):
                        self._places.setdefault(bytes.fromhex(found), (len(self._files), group, row))
            self._files.append(path)

    @classmethod
    def latents(cls, folders: Iterable[Path]) -> StoredRows:
        """The encoded images of the folders. Raises UserError if one is not encoded data."""
        found = [(folder, read_encoded(folder)) for folder in folders]
        parts = [(folder, part) for folder, info in found for bucket in info.buckets for part in bucket.parts]
        return cls(parts, "latent_key")

    @classmethod
    def texts(cls, folders: Iterable[Path]) -> StoredRows:
        """The encoded captions of the folders. Raises UserError if one is not encoded data."""
        found = [(folder, read_encoded(folder)) for folder in folders]
        return cls([(folder, part) for folder, info in found for part in info.texts.parts], "text_key")

    def get(self, key: str, names: Sequence[str]) -> dict[str, Any] | None:
        """Columns `names` of the row with this key; None if there is no such row or it lacks one of them.

        Raises UserError if the row cannot be read.
        """
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        number, group, row = place
        try:
            table = self._group(number, group)
        except (OSError, pa.ArrowException) as error:
            what = f"{self._files[number]}, row group {group}, row {row}: {one_line(error)}"
            raise UserError(what, "leave its folder out of --reuse, or copy it again") from None
        if not set(names) <= set(table.schema.names):
            return None
        (found,) = table.select(list(names)).slice(row, 1).to_pylist()
        return found

    def _group(self, number: int, group: int) -> pa.Table:
        """Read a row group, unless it is the one that was read last: items come in about the same order."""
        if self._last is None or self._last[0] != (number, group):
            with _mapped(self._files[number]) as file:
                self._last = (number, group), file.read_row_group(group)
        return self._last[1]


def _mapped(path: Path) -> Any:
    return parquet.mapped(path, page_checksum_verification=True)
