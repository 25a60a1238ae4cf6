"""Features of the images of a set: what extractors return, and what is stored and merged.

The rows are an Arrow table, so that the features of thousands of images are read from disk in blocks:
memory does not grow with their number. A file is one Arrow IPC file; its schema's metadata has the
extractor's identity.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from uhr.base.errors import UserError, one_line
from uhr.base.files import atomic

if TYPE_CHECKING:
    import numpy as np

_IDENTITY = b"uhr.extractor"
_INDEX = "index"

BLOCK = 1024
"""Rows that are read at once."""


@dataclass(frozen=True)
class Features:
    """Rows of features with the number of the image that each belongs to.

    table: the column `index` (int64), and columns of float32 vectors of one length each.
    identity: that of the extractor, as JSON can store it.
    """

    table: pa.Table
    identity: Mapping[str, Any]

    @classmethod
    def of(cls, identity: Mapping[str, Any], index: int, arrays: Mapping[str, np.ndarray]) -> Features:
        """Make the features of one image from arrays float [rows, D]; the rows are its crops.

        Raises UserError if a number is not finite.
        """
        import numpy as np

        columns = {}
        for name, values in arrays.items():
            values = np.ascontiguousarray(values, dtype=np.float32)
            if not np.isfinite(values).all():
                raise UserError(
                    f"the {name} of image {index} are not finite",
                    "check the image and the extractor's weights",
                )
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        rows = len(next(iter(columns.values())))
        return cls(pa.table({_INDEX: pa.array([index] * rows, pa.int64()), **columns}), identity)

    @classmethod
    def merge(cls, parts: Sequence[Features]) -> Features:
        """Put the features of several images or workers together, without copying them.

        For large sets, write those of a few images at a time, and merge what `read` maps: what is kept
        between large images keeps the gaps in the heap that these leave (45 MB for each of 4096 x 4096 px).

        Raises UserError if there are none, if they are of different extractors, or if an image occurs in
        two parts.
        """
        import numpy as np

        if not parts:
            raise UserError("there are no features", "give at least one image")
        for part in parts[1:]:
            _check_same(parts[0].identity, part.identity, "one part", "another")
        numbers, counts = np.unique(
            np.concatenate([np.unique(part._index) for part in parts]), return_counts=True
        )
        if (counts > 1).any():
            twice = int(numbers[counts > 1][0])
            raise UserError(
                f"the features of image {twice} occur in two parts", "give each image a number of its own"
            )
        return cls(pa.concat_tables([part.table for part in parts]), parts[0].identity)

    def write(self, path: Path) -> None:
        """Write the features as one Arrow IPC file, atomically."""
        metadata = {_IDENTITY: json.dumps(dict(self.identity), sort_keys=True).encode()}
        table = self.table.combine_chunks().replace_schema_metadata(metadata)
        with (
            atomic(path) as temporary,
            open(temporary, "wb") as file,
            pa.ipc.new_file(file, table.schema) as writer,
        ):
            writer.write_table(table)

    @classmethod
    def read(cls, path: Path) -> Features:
        """Map a file of features into memory. Raises UserError if it is no such file."""
        fix = "compute the features again"
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            identity = json.loads((table.schema.metadata or {})[_IDENTITY])
        except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
            raise UserError(f"{path} has no features ({one_line(error)[:120]})", fix) from None
        if _INDEX not in table.column_names or len(table.column_names) < 2:
            raise UserError(f"{path} has no features (its columns are {table.column_names})", fix)
        return cls(table, identity)

    def check(self, identity: Mapping[str, Any], what: str = "the features") -> None:
        """Raise UserError if these are not of the extractor with this identity."""
        _check_same(self.identity, identity, what, "this metric")

    @cached_property
    def _index(self) -> np.ndarray:
        return self.table.column(_INDEX).to_numpy()

    @cached_property
    def _order(self) -> np.ndarray:
        """The rows by the number of their image: the result does not depend on how images were divided."""
        import numpy as np

        return np.argsort(self._index, kind="stable")

    @property
    def numbers(self) -> np.ndarray:
        """The number of the image of each row, int64 [rows], in the order of `rows`."""
        return self._index[self._order]

    def __len__(self) -> int:
        """The number of rows: images, or crops."""
        return self.table.num_rows

    @property
    def images(self) -> int:
        """The number of images."""
        import numpy as np

        return len(np.unique(self._index))

    def rows(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """Return some rows of a column, float32 [len(numbers), D]; row 0 is the first of the first image."""
        import numpy as np

        chunks, starts = self._chunks[name]
        wanted = self._order[numbers]
        where = np.searchsorted(starts, wanted, side="right") - 1
        found = np.empty((len(wanted), chunks[0].shape[1]), dtype=np.float32)
        for number in np.unique(where):
            places = np.flatnonzero(where == number)
            found[places] = chunks[number][wanted[places] - starts[number]]
        return found

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Yield all rows of a column in their order, float32 [at most BLOCK, D]."""
        import numpy as np

        for start in range(0, len(self), BLOCK):
            yield self.rows(name, np.arange(start, min(start + BLOCK, len(self))))

    @cached_property
    def _chunks(self) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
        """Each column's chunks as arrays, without copying, and the first row of each chunk."""
        import numpy as np

        found = {}
        for name in self.table.column_names:
            if name != _INDEX:
                pieces = [chunk for chunk in self.table.column(name).chunks if len(chunk)]
                starts = np.cumsum([0, *map(len, pieces[:-1])])
                found[name] = [piece.flatten().to_numpy().reshape(len(piece), -1) for piece in pieces], starts
        return found


def _check_same(one: Mapping[str, Any], other: Mapping[str, Any], what: str, that: str) -> None:
    if one == other:
        return
    differs = sorted(k for k in {*one, *other} if one.get(k) != other.get(k))
    values = "; ".join(f"{k} {one.get(k)!r} and {other.get(k)!r}" for k in differs[:3])
    raise UserError(
        f"{what} and {that} have different feature extractors ({values})",
        "compute both with the same extractor and options",
    )
