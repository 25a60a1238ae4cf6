"""Values of a stage as their columns take them: checked one by one, so that a bad one costs its row only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

Fit = Callable[[Any], Any]
"""The value for the column; raises pyarrow's error where the column cannot hold it."""


def fit_for(type_: pa.DataType) -> Fit:
    """How values come into a column of this type.

    NumPy's numbers become Python's. NaN and infinity become null: they are no values, and SQL takes them for
    the largest numbers.
    """

    def carefully(value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return None
        held = pa.scalar(value, type_).as_py()
        # 1e300 is infinite in a column of 32-bit floats
        return None if isinstance(held, float) and not math.isfinite(held) else value

    # what comes in practice is taken at a glance: this runs for every value of every image
    if pa.types.is_float64(type_):
        return lambda value: value if type(value) is float and math.isfinite(value) else carefully(value)
    if pa.types.is_integer(type_):
        least, most = _range(type_)
        return lambda value: value if type(value) is int and least <= value <= most else carefully(value)
    if pa.types.is_string(type_):
        return lambda value: value if type(value) is str and value.isascii() else carefully(value)
    return carefully


def _range(type_: pa.DataType) -> tuple[int, int]:
    signed = pa.types.is_signed_integer(type_)
    bits = type_.bit_width - signed
    return (-(2**bits) if signed else 0), 2**bits - 1
