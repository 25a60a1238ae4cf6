"""Tensors as bytes in a Parquet cell and back: little-endian, C order; dtype and shape stand in
`encoded.json`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def size_of(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor of that shape."""
    return math.prod(shape) * BYTES[dtype]


def to_bytes(tensor: torch.Tensor, dtype: str) -> bytes:
    """A tensor of any shape, rounded to `dtype`."""
    import torch

    assert dtype in BYTES
    stored = tensor.detach().to("cpu", getattr(torch, dtype)).contiguous()
    return stored.view(torch.uint8).numpy().tobytes()


def from_bytes(data: bytes, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """What `to_bytes` wrote. ValueError where the bytes are not as many as the shape needs."""
    import torch

    expected = size_of(shape, dtype)
    if len(data) != expected:
        raise ValueError(f"{len(data)} bytes where {shape} in {dtype} are {expected}")
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(shape)
