"""The former home of `uhr.pixels.decode`, importable until its callers have moved."""

from uhr.pixels.decode import (  # noqa: F401
    Decoded,
    PixelLimits,
    decode,
    fit,
    jpeg_preview,
    read_bytes,
    resize,
)
from uhr.pixels.headers import read_header  # noqa: F401
from uhr.pixels.types import Header, PixelFault  # noqa: F401
