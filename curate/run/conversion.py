"""Convert a stage's values for their columns, one by one, so that an invalid value fails only its own row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

Converter = Callable[[Any], Any]
"""Returns the value for the column; raises pyarrow's error if the column cannot hold it."""


def converter_for(type_: pa.DataType) -> Converter:
    """Return the function that converts values for a column of this type.

    NumPy scalars become Python's. NaN and infinity become null: SQL would treat them as the largest numbers.
    """

    def checked(value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return None
        stored = pa.scalar(value, type_).as_py()
        # 1e300 is infinite in a column of 32-bit floats
        return None if isinstance(stored, float) and not math.isfinite(stored) else value

    # fast paths for the usual types: this runs for every value of every image
    if pa.types.is_float64(type_):
        return lambda value: value if type(value) is float and math.isfinite(value) else checked(value)
    if pa.types.is_integer(type_):
        least, most = _range(type_)
        return lambda value: value if type(value) is int and least <= value <= most else checked(value)
    if pa.types.is_string(type_):
        return lambda value: value if type(value) is str and value.isascii() else checked(value)
    return checked


def _range(type_: pa.DataType) -> tuple[int, int]:
    signed = pa.types.is_signed_integer(type_)
    bits = type_.bit_width - signed
    return (-(2**bits) if signed else 0), 2**bits - 1
