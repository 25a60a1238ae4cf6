"""Tensors as bytes in Parquet cells: little-endian, C order; dtype and shape are in `encoded.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "uint8": 1}


def size_of(shape: tuple[int, ...], dtype: str) -> int:
    """Number of bytes of a tensor."""
    return math.prod(shape) * BYTES[dtype]


def to_bytes(tensor: torch.Tensor, dtype: str) -> bytes:
    """Convert a tensor of any shape to bytes, rounded to `dtype`."""
    import torch

    assert dtype in BYTES
    stored = tensor.detach().to("cpu", getattr(torch, dtype)).contiguous()
    return stored.view(torch.uint8).numpy().tobytes()


def stacked(cells: Sequence[Any], shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """Read what `to_bytes` wrote into one new tensor [len(cells), *shape]; each byte is copied once.

    cells: objects with the buffer interface, such as bytes and pyarrow's buffers. Raises `CellFault` if the
    number of bytes of one does not fit the shape.
    """
    import numpy as np
    import pyarrow as pa
    import torch

    expected = size_of(shape, dtype)
    # Arrow's pool keeps memory that is free; a new tensor's pages are cleared first, which costs more than
    # the copy
    memory = pa.allocate_buffer(len(cells) * expected)
    flat = np.frombuffer(memory, np.uint8).reshape(len(cells), expected)
    for number, cell in enumerate(cells):
        data = np.frombuffer(cell, np.uint8)
        if data.size != expected:
            what = f"{data.size} bytes where {shape} in {dtype} are {expected}"
            raise CellFault(number, what)
        flat[number] = data
    return torch.frombuffer(memory, dtype=getattr(torch, dtype)).view(len(cells), *shape)


class CellFault(ValueError):
    """A cell whose bytes are not a tensor of the expected shape; `number` is its place among those read."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.number = number


def all_finite(data: bytes, dtype: str) -> bool:
    """Whether the bytes of a tensor contain neither NaN nor infinity."""
    import torch

    values = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
    return bool(torch.isfinite(values).all())
