"""An image and what is derived from it, each computed at most once and only when a stage needs it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from uhr.manifests.sources.blobs import Blob
from uhr.pixels.decode import Decoded, PixelLimits, decode, jpeg_preview
from uhr.pixels.files import changed
from uhr.pixels.headers import read_header
from uhr.pixels.types import Header, PixelFault

if TYPE_CHECKING:
    import numpy as np
    import torch

    from uhr.curate.measures.gray_pass import GrayMeasures
    from uhr.models.scores.images import View


class Frame:
    """One sample's image, shared by all stages.

    All values come from one version of the file: the blob's, if it has one, whose header is `known`. A stage
    that needs the file's bytes should use `data`; one that opens `path` itself may read a newer version.
    Faults are not cached: a caller must stop at the first one.

    Args:
        uri: the address in the source.
        blob: the file's bytes.
        row: the columns known so far, from the sidecars and earlier stages.
        limits: bounds on the file's bytes and pixels.
        known: the header that an earlier stage read.

    Every property that needs bytes or pixels raises PixelFault if the file cannot be read or decoded, and
    PixelFault("changed") if the file is not the listed version any more.
    """

    def __init__(
        self,
        uri: str,
        blob: Blob,
        row: Mapping[str, Any],
        limits: PixelLimits | None = None,
        known: Header | None = None,
    ) -> None:
        self.uri = uri
        self.blob = blob
        self.row = row
        self.limits = limits or PixelLimits()
        self.known = known
        self.is_undecodable = False
        """Whether the bytes were read, and decoding them failed."""
        self.decoding: Callable[[bool], object] = lambda begins: None
        """Called with True before the image is decoded, and with False after that."""
        self._gray_measures: dict[int, GrayMeasures] = {}

    @property
    def path(self) -> str | None:
        """The file that has exactly the image's bytes; None if they are in an archive or elsewhere."""
        return self.blob.path

    @cached_property
    def header(self) -> Header:
        """The header, parsed from the first bytes of the file. The rest is not read or verified."""
        if self.known is None:
            read = "data" in self.__dict__
            self.known = read_header(self.data) if read else self.blob.header()
        return self.known

    @cached_property
    def file_size(self) -> int:
        """Size of the file in bytes."""
        if "data" in self.__dict__:
            return len(self.data)
        return self.blob.size

    @cached_property
    def data(self) -> bytes:
        """The bytes of the whole file."""
        data = self.blob.read(self.limits)
        if self.known is not None:
            _compare(self.known, data)
        return data

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the file's bytes, 64 hex digits."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def decoded(self) -> Decoded:
        """The decoded image on its stored grid. Decoding verifies that the file is complete."""
        data = self.data
        self.decoding(True)
        try:
            return decode(data, self.limits, self.known)
        except PixelFault:
            self.is_undecodable = True
            raise
        finally:
            self.decoding(False)

    @property
    def is_decoded(self) -> bool:
        """Whether the pixels are in memory, so that what is made of them costs no decoding."""
        return "decoded" in self.__dict__

    @cached_property
    def gray(self) -> np.ndarray:
        """uint8 [H, W], OpenCV's gray of the full colour decode, on the stored grid."""
        return self.decoded.gray()

    @cached_property
    def rgb(self) -> np.ndarray:
        """uint8 [H, W, 3], upright sRGB, alpha over white."""
        return self.decoded.rgb()

    def gray_measures(self, patch: int | None = None) -> GrayMeasures:
        """The measures of one pass over `gray` with patches of `patch` px. None takes those of any pass that
        was already made, or makes one with the default."""
        from uhr.curate.measures import gray_pass

        if patch is None:
            patch = next(iter(self._gray_measures), gray_pass.PATCH)
        if patch not in self._gray_measures:
            self._gray_measures[patch] = gray_pass.measure(self.gray, patch)
        return self._gray_measures[patch]

    def preview(self, long_side: int = 320) -> tuple[bytes, int, int]:
        """Return a small upright sRGB JPEG for reports: its bytes, width and height in px."""
        return jpeg_preview(self.decoded.rgb(long_side=long_side), long_side)

    def view(self, view: View) -> torch.Tensor:
        """Return what a model looks at, uint8 [H, W, 3]: `view.of(rgb)`, without a copy of the whole image
        where its channels are only in another order.
        """
        bgr = None if "rgb" in self.__dict__ else self.decoded.plain_bgr()
        if bgr is None or not bgr.flags.c_contiguous:
            return view.of(self.rgb)
        return view.of(bgr, reverse=True)

    def check_unchanged(self) -> None:
        """Raise PixelFault("changed") if the file is not the listed version any more."""
        self.blob.check_unchanged()


def _compare(known: Header, data: bytes) -> None:
    """Raise PixelFault("changed") unless the bytes have this header: a replaced file may have the size and
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
