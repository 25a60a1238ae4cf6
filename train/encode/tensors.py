"""Tensors as bytes in Parquet cells: little-endian, C order; dtype and shape are in `encoded.json`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

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


def from_bytes(data: bytes, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """Read what `to_bytes` wrote. Raises ValueError if the number of bytes does not fit the shape."""
    import torch

    expected = size_of(shape, dtype)
    if len(data) != expected:
        raise ValueError(f"{len(data)} bytes where {shape} in {dtype} are {expected}")
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(shape)


def all_finite(data: bytes, dtype: str) -> bool:
    """Whether the bytes of a tensor contain neither NaN nor infinity."""
    import torch

    values = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype))
    return bool(torch.isfinite(values).all())
