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

    # chunk by chunk: the offsets of one list array count up to 2**31 values, 2 million embeddings
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in chunks]
    widths = {int(width) for each in lengths for width in np.unique(each)}
    if len(widths) > 1:
        raise UserError(f"stage '{where}': the embeddings have several lengths", "make them by one model")
    matrix = np.empty((len(column), widths.pop() if widths else 0), np.float32)
    start = 0
    for chunk in chunks:
        rows = matrix[start : start + len(chunk)]
        rows[:] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(rows.shape)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
        start += len(chunk)
    return matrix
