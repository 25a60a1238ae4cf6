"""An image and what is derived from it, each computed at most once and only when a stage asks for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.pixels.decode import Decoded, PixelLimits, decode, jpeg_preview, read_bytes
from uhr.pixels.files import changed, stat_file
from uhr.pixels.headers import read_header
from uhr.pixels.types import Header, PixelFault

if TYPE_CHECKING:
    import numpy as np

    from uhr.curate.measures.guards import Guards


class Frame:
    """One sample's image, as all stages share it.

    `uri` is its address below the source root, `path` the file, `row` the columns known so far: the
    sidecar's values and what earlier stages added. `known` is the header that an earlier stage read.
    Whatever needs bytes or pixels raises `PixelFault` where the file gives none; a fault is found again, not
    remembered, so stop at the first.

    Everything here comes from one version of the file: the one in `row["source_version"]`, where that is
    listed, with the header `known`; the fault is "changed" where the file is another one by now. A stage
    that needs the file's bytes takes `data`; one that opens `path` itself reads whatever is there then.
    """

    def __init__(
        self,
        uri: str,
        path: Path | str,
        row: Mapping[str, Any],
        limits: PixelLimits | None = None,
        known: Header | None = None,
    ) -> None:
        self.uri = uri
        self.path = path
        self.row = row
        self.limits = limits or PixelLimits()
        self.known = known
        self._version: str | None = row.get("source_version")
        self._guards: dict[int, Guards] = {}

    @cached_property
    def header(self) -> Header:
        """From the first bytes: nothing behind them is read, and nothing is vouched for."""
        if self.known is None:
            read = "data" in self.__dict__
            self.known = read_header(self.data) if read else read_header(self.path, self._version)
        return self.known

    @cached_property
    def file_size(self) -> int:
        """Bytes."""
        if "data" in self.__dict__:
            return len(self.data)
        return stat_file(self.path, self._version).st_size

    @cached_property
    def data(self) -> bytes:
        """The whole file."""
        data = read_bytes(self.path, self.limits, self._version)
        if self.known is not None:
            _compare(self.known, data)
        return data

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the file's bytes, 64 hex digits."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def decoded(self) -> Decoded:
        """The image on its stored grid; that it exists proves the file whole."""
        return decode(self.data, self.limits, self.known)

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
        from uhr.curate.measures import guards

        if patch is None:
            patch = next(iter(self._guards), guards.PATCH)
        if patch not in self._guards:
            self._guards[patch] = guards.measure(self.gray, patch)
        return self._guards[patch]

    def preview(self, long_side: int = 320) -> tuple[bytes, int, int]:
        """A small upright sRGB JPEG for people: its bytes, width and height in pixels."""
        return jpeg_preview(self.decoded.rgb(long_side=long_side), long_side)

    def check_unchanged(self) -> None:
        """Raise `PixelFault("changed")` where the file is not the one that was listed any more."""
        if self._version is not None:
            stat_file(self.path, self._version)


def _compare(known: Header, data: bytes) -> None:
    """Raise `PixelFault("changed")` unless the bytes have this header: a replacement may have the size and
    the time of the original.
    """
    try:
        found = read_header(data)
    except PixelFault as fault:
        raise changed(f"its header could be read before, and now: {fault.message}") from None
    if found != known:
        raise changed(f"it was {_described(known)} when its header was read, and is {_described(found)} now")


def _described(header: Header) -> str:
    depth = "" if header.bit_depth is None else f" of {header.bit_depth} bits"
    return f"a {header.format} of {header.width}x{header.height} px, {header.mode}{depth}"
