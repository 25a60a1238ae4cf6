"""Decode bytes to pixels, and resize pixels. Nothing else decodes or resizes.

Nothing is decoded before its header and the limits are checked. The result is either the stored grid, as the
gray pass of curation measures it, or the image as it is displayed: upright, sRGB, alpha over white.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from uhr.base.config import Config
from uhr.base.formatting import human_bytes
from uhr.pixels.decoders import decode_planes, upright
from uhr.pixels.files import open_version
from uhr.pixels.headers import read_header
from uhr.pixels.planes import Planes
from uhr.pixels.types import Header, PixelFault

Box = tuple[int, int, int, int]
"""x, y, width, height in oriented pixels."""


class PixelLimits(Config):
    """Limits that are checked before anything is decoded.

    400 megapixels is four times the largest single-shot cameras, and its 2.8 GB (colour, gray and a copy)
    fit into a worker; larger stitched panoramas need a higher limit and more memory.
    """

    pixels: int = Field(400_000_000, gt=0)
    file_bytes: int = Field(2_000_000_000, gt=0)

    def check(self, header: Header) -> None:
        if header.pixels > self.pixels:
            size = f"{header.raw_width} x {header.raw_height}"
            raise PixelFault("too large", f"{size} pixels, more than the limit of {self.pixels / 1e6:g} Mpx")


@dataclass(eq=False)
class Decoded:
    """A completely decoded image."""

    header: Header
    planes: Planes

    @property
    def bgr(self) -> np.ndarray:
        """The pixels, uint8 [H, W, 3] on the stored grid: before orientation, ICC and alpha.

        16-bit channels have their upper eight bits, as in libpng and Pillow; an animation has its first
        frame.
        """
        return self.planes.bgr

    @property
    def notes(self) -> list[str]:
        """Irregularities that do no harm, such as a profile that could not be used, or stray bytes."""
        return self.planes.notes

    def gray(self) -> np.ndarray:
        """Return uint8 [H, W] on the stored grid: OpenCV's BGR2GRAY (0.299 R + 0.587 G + 0.114 B)."""
        import cv2

        return cv2.cvtColor(self.bgr, cv2.COLOR_BGR2GRAY)

    def rgb(self, box: Box | None = None, long_side: int | None = None) -> np.ndarray:
        """Return uint8 [H', W', 3], upright sRGB, alpha over white, of the whole image or of `box`.

        Images with a longer side than `long_side` pixels are shrunk to it, before colours are converted.
        """
        alpha, pixels = self.alpha(), _crop(self._upright(), box)
        if alpha is not None:
            # no ink is white
            white = 255 if self.planes.cmyk is None else 0
            pixels = _over(pixels, _crop(alpha, box), white)
        pixels = np.ascontiguousarray(pixels)
        if long_side is not None:
            pixels = fit(pixels, long_side)
        return self._converted(pixels)

    def opaque_rgb(self) -> np.ndarray:
        """Return uint8 [H, W, 3], upright sRGB, without alpha: transparent pixels have the file's values."""
        return self._converted(np.ascontiguousarray(self._upright()))

    def plain_bgr(self) -> np.ndarray | None:
        """Return a view of uint8 [H, W, 3], upright, whose channels in reverse are `rgb()`; None if colours
        are converted or alpha is blended.
        """
        planes = self.planes
        plain = planes.alpha is None and planes.cmyk is None and planes.conversion is None
        return self._upright() if plain else None

    def alpha(self) -> np.ndarray | None:
        """Return uint8 [H, W], upright, 255 is opaque; None if every pixel is opaque."""
        alpha = self.planes.alpha
        return None if alpha is None else upright(alpha, self.header.orientation)

    def _upright(self) -> np.ndarray:
        planes = self.planes
        return upright(planes.bgr if planes.cmyk is None else planes.cmyk, self.header.orientation)

    def _converted(self, pixels: np.ndarray) -> np.ndarray:
        """Convert stored pixels, BGR or CMYK, to sRGB."""
        import cv2

        planes = self.planes
        if planes.cmyk is None:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        return pixels if planes.conversion is None else planes.conversion.apply(pixels)


def read_bytes(path: Path | str, limits: PixelLimits | None = None, version: str | None = None) -> bytes:
    """Read all bytes of a file, in one version.

    Raises `PixelFault` if it cannot be read, is empty, exceeds the limit, changes while it is read, or has
    another `version` (`uhr.base.files.file_version`) than the one that was listed.
    """
    limits = limits or PixelLimits()
    with open_version(path, version) as handle:
        size = os.fstat(handle).st_size
        check_bytes(size, limits)
        with open(handle, "rb", closefd=False) as file:
            # not more: a file that is appended to meanwhile may have no end
            return file.read(size)


def check_bytes(size: int, limits: PixelLimits) -> None:
    """Raise PixelFault if an image of `size` bytes is empty, or larger than the limit."""
    if size == 0:
        raise PixelFault("empty file", "the file has no bytes")
    if size > limits.file_bytes:
        message = f"{human_bytes(size)}, more than the limit of {human_bytes(limits.file_bytes)}"
        raise PixelFault("too large", message)


def decode(data: bytes, limits: PixelLimits | None = None, header: Header | None = None) -> Decoded:
    """Decode the whole image in `data`. Raises `PixelFault` and nothing else, whatever the bytes are.

    `header` is `read_header(data)`, if that was already called.
    """
    limits = limits or PixelLimits()
    check_bytes(len(data), limits)
    header = header or read_header(data)
    limits.check(header)
    return Decoded(header, decode_planes(data, header))


def _crop(pixels: np.ndarray, box: Box | None) -> np.ndarray:
    if box is None:
        return pixels
    x, y, width, height = box
    inside = 0 <= x < x + width <= pixels.shape[1] and 0 <= y < y + height <= pixels.shape[0]
    assert inside, f"box {box} in an image of {pixels.shape[:2]}"
    return pixels[y : y + height, x : x + width]


def _over(pixels: np.ndarray, alpha: np.ndarray, white: int) -> np.ndarray:
    """Blend over white in the file's own encoding, rounded: (c a + white (255 - a)) / 255."""
    weight = alpha.astype(np.uint16)[..., None]
    blend = pixels * weight + np.uint16(white) * (255 - weight) + np.uint16(127)
    return (blend // 255).astype(np.uint8)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize to uint8 [height, width, C]: by area averages along a side that shrinks, else by Lanczos."""
    import cv2

    old_height, old_width = pixels.shape[:2]
    shrunk = (min(width, old_width), min(height, old_height))
    if shrunk != (old_width, old_height):
        pixels = cv2.resize(pixels, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (width, height):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LANCZOS4)
    return pixels


def fit(pixels: np.ndarray, long_side: int) -> np.ndarray:
    """Shrink pixels so that the longer side is `long_side`; smaller ones are returned unchanged.

    By area averages, of pixels that are first averaged in 2 x 2 as long as a side is at least twice too long
    after it. That takes half of the time, and differs by rounding, and at the borders of areas that are not
    whole pixels: enough for display, and not for values.
    """
    height, width = pixels.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1:
        return pixels
    small = max(1, round(height * scale)), max(1, round(width * scale))
    while height % 2 == 0 == width % 2 and height >= 4 * small[0] and width >= 4 * small[1]:
        height, width = height // 2, width // 2
        pixels = resize(pixels, height, width)
    return resize(pixels, *small)


def jpeg_preview(rgb: np.ndarray, long_side: int = 320, quality: int = 82) -> tuple[bytes, int, int]:
    """Return a small JPEG for display: its bytes, width and height in pixels."""
    import cv2

    small = np.ascontiguousarray(fit(rgb, long_side)[..., ::-1])
    done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV encodes every uint8 image"
    return data.tobytes(), small.shape[1], small.shape[0]


def png(rgb: np.ndarray) -> bytes:
    """Return the pixels, uint8 [H, W, 3] or [H, W], as a PNG, losslessly."""
    import cv2

    done, data = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1] if rgb.ndim == 3 else rgb))
    assert done, "OpenCV encodes every uint8 image"
    return data.tobytes()
