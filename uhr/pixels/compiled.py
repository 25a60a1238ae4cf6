"""Numeric functions compiled by numba."""

from __future__ import annotations

from typing import Any


def compiled(function: Any, **options: Any) -> Any:
    """Compile a function by numba at its first call. It releases the interpreter's lock while it runs.

    The machine code is cached next to the function's file or in the user's cache folder; where neither can be
    written, each process compiles for itself. `options` are those of `numba.njit`.
    """
    import numba

    try:
        return numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:
        return numba.njit(nogil=True, **options)(function)
