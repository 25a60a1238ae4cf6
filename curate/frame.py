"""A picture and what is derived from it, each computed at most once and only when a stage asks for it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.pixels.decode import Decoded, PixelLimits, decode, jpeg_preview, read_bytes
from uhr.pixels.headers import read_header
from uhr.pixels.types import Header, unreadable

if TYPE_CHECKING:
    import numpy as np

    from uhr.curate.guards import Guards


class Frame:
    """One sample's picture, as all stages share it.

    `uri` is its address below the source root, `path` the file, `row` the columns known so far: the
    sidecar's values and what earlier stages added. Whatever needs bytes or pixels raises `PixelFault` where
    the file gives none; a fault is found again, not remembered, so stop at the first.
    """

    def __init__(
        self, uri: str, path: Path | str, row: Mapping[str, Any], limits: PixelLimits | None = None
    ) -> None:
        self.uri = uri
        self.path = path
        self.row = row
        self.limits = limits or PixelLimits()
        self._guards: dict[int, Guards] = {}

    @cached_property
    def header(self) -> Header:
        """From the first bytes: nothing behind them is read, and nothing is vouched for."""
        return read_header(self.path)

    @cached_property
    def file_size(self) -> int:
        """Bytes."""
        if "data" in self.__dict__:
            return len(self.data)
        try:
            return os.stat(self.path).st_size
        except OSError as error:
            raise unreadable(error) from None

    @cached_property
    def data(self) -> bytes:
        """The whole file."""
        return read_bytes(self.path, self.limits)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the file's bytes, 64 hex digits."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def decoded(self) -> Decoded:
        """The picture on its stored grid; that it exists proves the file whole."""
        return decode(self.data, self.limits)

    @cached_property
    def gray(self) -> np.ndarray:
        """uint8 [H, W], OpenCV's gray of the full colour decode, on the stored grid."""
        return self.decoded.gray()

    @cached_property
    def rgb(self) -> np.ndarray:
        """uint8 [H, W, 3], upright sRGB, alpha over white."""
        return self.decoded.rgb()

    def guards(self, patch: int | None = None) -> Guards:
        """The numbers of the fused pass over `gray`, with patches of `patch` px (None: any pass will do)."""
        from uhr.curate import guards

        if patch is None:
            patch = next(iter(self._guards), guards.PATCH)
        if patch not in self._guards:
            self._guards[patch] = guards.measure(self.gray, patch)
        return self._guards[patch]

    def preview(self, long_side: int = 320) -> tuple[bytes, int, int]:
        """A small upright sRGB JPEG for people: its bytes, width and height in pixels."""
        return jpeg_preview(self.decoded.rgb(long_side=long_side), long_side)
