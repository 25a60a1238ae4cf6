"""A column of embeddings as a matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from uhr.base.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def vectors_of(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """Return embeddings without nulls as float32 [n, d], each of length 1.

    Raises UserError if they have several lengths.
    """
    import numpy as np

    lists = column.combine_chunks()
    count = len(lists)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    width = len(values) // count if count else 0
    if count and set(np.unique(lists.value_lengths().to_numpy(zero_copy_only=False)).tolist()) != {width}:
        raise UserError(f"stage '{where}': the embeddings have several lengths", "make them by one model")
    matrix = values.astype(np.float32).reshape(count, width)
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), np.float32(1e-12))
