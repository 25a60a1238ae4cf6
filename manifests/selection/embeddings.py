"""Select by an embedding: the rows nearest to a vector, and rows that cover the set.

Vectors are compared by their cosine, in float64, row by row, so that a result depends neither on the number
of threads nor on how the rows are divided into parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from uhr.base.console import warn
from uhr.base.errors import UserError, one_line
from uhr.manifests.manifest import Manifest
from uhr.manifests.selection.options import Similar

Embed = Callable[[Path | str], np.ndarray]
"""Returns the vector [D] of an image file (a Path) or a text."""

_STEP = 8192
"""Rows whose vectors are in memory at once while they are compared with one vector."""

_DECIMALS = 12
"""Cosines are rounded to this before they are ordered: the last digits depend on the processor."""


class Vectors:
    """The column `name` of some rows of a manifest, which has a vector of numbers per row.

    Raises UserError if the manifest has no such column.
    """

    def __init__(self, parent: Manifest, name: str) -> None:
        if name not in parent.schema.names:
            raise UserError(
                f"{parent.name} has no column {name}",
                "add the stage that writes it to the pipeline, or name another column with --embedding",
            )
        kind = parent.schema.field(name).type
        if not (_is_list(kind) and pa.types.is_floating(kind.value_type)):
            raise UserError(
                f"{name} is {kind}, not a vector of numbers", "name another column with --embedding"
            )
        self.parent, self.name = parent, name

    def of(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (positions, unit vectors float64 [n, D]) of the rows at `positions` that have a direction.

        A null, a vector of zeros and one that is not finite have none. Raises UserError if two vectors have
        different lengths.
        """
        length: int | None = None
        for group in self.parent.row_groups():
            low, high = np.searchsorted(positions, [group.start, group.start + group.rows])
            if low == high:
                continue
            column = self.parent.row_group(group, [self.name])[self.name].combine_chunks()
            for start in range(low, high, _STEP):
                here = positions[start : min(high, start + _STEP)]
                taken = column.take(pa.array(here - group.start))
                present = taken.is_valid().to_numpy(zero_copy_only=False)
                if not present.any():
                    continue
                matrix = self._matrix(taken.drop_null(), length)
                length = matrix.shape[1]
                units, directed = _unit(matrix)
                if directed.any():
                    yield here[present][directed], units[directed]

    def of_sample(self, sample: str) -> np.ndarray:
        """Return the unit vector of a sample (an id, the beginning of one, or a uri), float64 [D]."""
        row = self.parent.row(sample)
        if row[self.name] is None:
            raise UserError(f"{row['uri']} has no {self.name}", "name another sample")
        return unit_vector(np.array(row[self.name], dtype=np.float64), f"{self.name} of {row['uri']}")

    def _matrix(self, vectors: pa.Array, length: int | None) -> np.ndarray:
        """Return lists of numbers as float64 [n, D], a null in a list as NaN. `length` is D, if known."""
        lengths = vectors.value_lengths().to_numpy(zero_copy_only=False)
        length = int(lengths[0]) if length is None else length
        if (lengths != length).any():
            other = int(lengths[lengths != length][0])
            raise UserError(
                f"{self.parent.name}: {self.name} has vectors of {length} and of {other} numbers",
                "name a column of vectors of one length with --embedding",
            )
        flat = vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        return flat.reshape(len(vectors), length)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def _unit(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a matrix [n, D] with norm 1, and which rows have a direction, bool [n]."""
    largest = np.abs(matrix).max(axis=1, keepdims=True, initial=0)
    directed = np.isfinite(largest) & (largest > 0)
    # divided by the largest number first, so that no square overflows or vanishes
    scaled = matrix / np.where(directed, largest, 1)
    norms = np.sqrt(np.square(scaled).sum(axis=1, keepdims=True))
    return scaled / np.where(directed, norms, 1), directed[:, 0]


def read_vector(file: Path) -> np.ndarray:
    """Read a vector from a .npy file, float64 [D] of norm 1. Raises UserError if it is not one."""
    try:
        vector = np.load(file, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({one_line(error)})", "save one vector with numpy.save"
        ) from None
    return unit_vector(vector, str(file))


def unit_vector(vector: np.ndarray, where: str) -> np.ndarray:
    """Return a vector as float64 [D] of norm 1. Raises UserError, which names `where`, if it is not one."""
    vector = np.squeeze(np.asarray(vector))
    if vector.ndim != 1 or vector.dtype.kind not in "fiub":
        raise UserError(
            f"{where} is {vector.dtype} of shape {vector.shape}, not a vector", "give real numbers [D]"
        )
    units, directed = _unit(vector.astype(np.float64)[None])
    if not directed[0]:
        raise UserError(f"{where} is all zeros, or not finite, and has no direction", "give another vector")
    return units[0]


def vector_hash(vector: np.ndarray) -> str:
    """Return the first 16 hex digits of the SHA-256 of a vector's float32 bytes."""
    return hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()[:16]


def nearest(
    vectors: Vectors, positions: np.ndarray, ids: pa.ChunkedArray, to: np.ndarray, count: int
) -> np.ndarray:
    """Return the `count` positions whose vectors have the largest cosine with `to`; ties go by sample id.

    positions: int64 [n], rising; ids: their sample ids. Rows without a vector are left out, with a warning.
    Raises UserError if the vectors have another length than `to`, or no row has one.
    """
    found: list[np.ndarray] = []
    cosines: list[np.ndarray] = []
    for here, matrix in vectors.of(positions):
        if matrix.shape[1] != len(to):
            raise UserError(
                f"--similar has {len(to)} numbers, and {vectors.name} has {matrix.shape[1]}",
                "embed both with the same model",
            )
        found.append(here)
        cosines.append(np.round((matrix * to).sum(axis=1), _DECIMALS))
    places = _present(found, positions, vectors.name, "--similar")
    order = np.lexsort((_texts(ids, positions, places), -np.concatenate(cosines)))
    return np.sort(places[order[:count]])


def covering(vectors: Vectors, positions: np.ndarray, ids: pa.ChunkedArray, count: int) -> np.ndarray:
    """Return `count` positions that cover the rows: farthest-point selection (Gonzalez 1985).

    The first is the row nearest to the mean of all; then, again and again, the row whose nearest chosen row
    has the smallest cosine with it. Its largest distance to a chosen row is at most twice the least possible.
    The work is count x rows, and all vectors are in memory. Arguments and errors are those of `nearest`.
    """
    parts = list(vectors.of(positions))
    places = _present([here for here, _ in parts], positions, vectors.name, "--diverse")
    matrix = np.concatenate([part for _, part in parts])
    if count > len(places):
        raise UserError(
            f"--diverse {count} is more than the {len(places)} rows with a {vectors.name}", "choose fewer"
        )
    # ties are decided by the first index: rows in the order of their ids
    order = np.argsort(_texts(ids, positions, places), kind="stable")
    places, matrix = places[order], matrix[order]
    chosen = np.empty(count, dtype=np.int64)
    chosen[0] = np.argmax(_cosines(matrix, matrix.mean(axis=0)))
    closest = _cosines(matrix, matrix[chosen[0]])
    for number in range(1, count):
        closest[chosen[number - 1]] = np.inf
        chosen[number] = np.argmin(closest)
        np.maximum(closest, _cosines(matrix, matrix[chosen[number]]), out=closest)
    return np.sort(places[chosen])


def _cosines(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return np.round((matrix * vector).sum(axis=1), _DECIMALS)


def _present(found: list[np.ndarray], positions: np.ndarray, name: str, option: str) -> np.ndarray:
    places = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    missing = len(positions) - len(places)
    if len(places) == 0:
        raise UserError(
            f"{option}: none of the {len(positions)} rows that are left has a {name}",
            "run the stage that writes it, or name another column with --embedding",
        )
    if missing:
        warn(
            f"{name} is null, zero or not finite on {missing:,} of {len(positions):,} rows, and {option} "
            f"leaves them out"
        )
    return places


def _texts(ids: pa.ChunkedArray, positions: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the ids of `places`, which are among `positions`, as bytes that NumPy can sort."""
    return ids.take(pa.array(np.searchsorted(positions, places))).to_numpy().astype("S")


def query_of(vectors: Vectors, similar: Similar, embed: Embed | None) -> tuple[Similar, np.ndarray]:
    """Return what `--similar` asks for, with its vector: of a .npy file, a sample, an image file or a text.

    `embed` embeds an image file or a text by the model that made the column. Raises UserError if it is needed
    and None, or if there is no such sample.
    """
    file = Path(similar.to)
    if file.suffix == ".npy" and file.is_file():
        vector = read_vector(file)
    elif embed is not None:
        vector = unit_vector(embed(file if file.is_file() else similar.to), "the embedding of the query")
    else:
        try:
            return similar, vectors.of_sample(similar.to)
        except UserError as error:
            raise UserError(
                f"--similar: {error.what}",
                "name a sample or a .npy file; with --clip WEIGHTS, an image or a text",
            ) from None
    named = {"to": file.name if file.is_file() else similar.to, "vector": vector_hash(vector)}
    return similar.model_copy(update=named), vector
