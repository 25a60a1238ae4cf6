"""The views of a unit's images that are passed on to models: one Arrow block in memory, never on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from uhr.pixels.types import PixelFault
from uhr.runtime.units import UnitFault

Fault = PixelFault | UnitFault


class ViewBlock:
    """Views by row, as they are made in one process and read in another."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = list(keys)
        self._rows: list[dict[str, Any]] = []

    def add(self, index: int, views: Mapping[str, Any]) -> None:
        """Add the views of a row: by key one uint8 tensor [H, W, 3]."""
        row: dict[str, Any] = {"index": index, "kind": None, "message": None}
        for number, key in enumerate(self._keys):
            pixels = views[key].numpy()
            row |= {f"pixels{number}": pixels.tobytes(), f"height{number}": pixels.shape[0]}
        self._rows.append(row)

    def add_fault(self, index: int, fault: Fault) -> None:
        """Add the reason why a row has no views."""
        self._rows.append({"index": index, "kind": fault.kind, "message": fault.message})

    def packed(self) -> bytes:
        """Return the block as an Arrow stream."""
        fields = [("index", pa.int32()), ("kind", pa.string()), ("message", pa.string())]
        for number in range(len(self._keys)):
            fields += [(f"pixels{number}", pa.large_binary()), (f"height{number}", pa.int32())]
        schema = pa.schema(fields)
        columns = [pa.array([row.get(f.name) for row in self._rows], f.type) for f in schema]
        self._rows = []
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(pa.table(columns, schema=schema))
        return sink.getvalue().to_pybytes()


class ViewReader:
    """The views of a block that `ViewBlock.packed` made, with the same keys."""

    def __init__(self, packed: bytes, keys: Sequence[str]) -> None:
        self._table = pa.ipc.open_stream(pa.py_buffer(packed)).read_all()
        self._numbers = {key: number for number, key in enumerate(keys)}
        self._places = {index: at for at, index in enumerate(self._table["index"].to_pylist())}

    def fault(self, index: int) -> UnitFault | None:
        """Return why a row has no views; None if it has them."""
        at = self._places[index]
        kind = self._table["kind"][at].as_py()
        return None if kind is None else UnitFault(kind, self._table["message"][at].as_py())

    def tensor(self, index: int, key: str) -> Any:
        """Return a view of a row: uint8 tensor [H, W, 3]."""
        import numpy as np
        import torch

        number, at = self._numbers[key], self._places[index]
        pixels = np.frombuffer(self._table[f"pixels{number}"][at].as_buffer(), np.uint8)
        height = self._table[f"height{number}"][at].as_py()
        # a copy: torch takes no memory that cannot be written to
        return torch.from_numpy(pixels.reshape(height, -1, 3).copy())
