"""Fixtures of the tests of the decoder."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from uhr.pixels.decode import Decoded, decode
from uhr.pixels.types import PixelFault


@pytest.fixture
def outcome() -> Callable[[bytes], Decoded | PixelFault]:
    """Decodes a file: `outcome(data)` is the image, or the fault that is raised."""

    def of(data: bytes) -> Decoded | PixelFault:
        try:
            return decode(data)
        except PixelFault as fault:
            return fault

    return of
