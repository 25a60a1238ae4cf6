"""Rows of encoded folders by their keys, so that a row with the same key is copied instead of computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from uhr.base import parquet
from uhr.base.errors import UserError, one_line
from uhr.manifests.info import Part
from uhr.train.encode.encoded import read_encoded


class StoredRows:
    """The rows of some Parquet parts, found by a column of keys (64 hex digits).

    Every key is in memory as 32 bytes; rows are read when they are asked for, by row group.
    """

    def __init__(self, parts: Iterable[tuple[Path, Part]], key: str) -> None:
        self._key = key
        self._files: list[Path] = []
        self._places: dict[bytes, tuple[int, int, int]] = {}
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
            with _mapped(self._files[number]) as file:
                if not set(names) <= set(file.schema_arrow.names):
                    return None
                (found,) = file.read_row_group(group, columns=list(names)).slice(row, 1).to_pylist()
        except (OSError, pa.ArrowException) as error:
            what = f"{self._files[number]}, row group {group}, row {row}: {one_line(error)}"
            raise UserError(what, "leave its folder out of --reuse, or copy it again") from None
        return found


def _mapped(path: Path) -> Any:
    return parquet.mapped(path, page_checksum_verification=True)
