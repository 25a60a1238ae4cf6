"""Bytes to pixels: the only decode there is, and the only resize.

Nothing is decoded before header and limits have passed it. What comes out is either the stored grid, as the
exact guards measure it, or the image as a person sees it: upright, sRGB, alpha over white.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uhr.base.config import Config
from uhr.base.files import human_bytes
from uhr.pixels.decoders import decode_planes, upright
from uhr.pixels.files import opened
from uhr.pixels.headers import read_header
from uhr.pixels.planes import Planes
from uhr.pixels.types import Header, PixelFault

Box = tuple[int, int, int, int]
"""x, y, width, height in oriented pixels."""


class PixelLimits(Config):
    """Guards that hold before anything is decoded.

    400 megapixels is four times the largest single-shot cameras, and their 2.8 GB (colour, gray and a copy)
    fit a worker; stitched panoramas beyond it need a higher limit and more memory.
    """

    pixels: int = 400_000_000
    file_bytes: int = 2_000_000_000

    def check(self, header: Header) -> None:
        if header.pixels > self.pixels:
            size = f"{header.raw_width} x {header.raw_height}"
            raise PixelFault("too large", f"{size} pixels, more than the limit of {self.pixels / 1e6:g} Mpx")


@dataclass(eq=False)
class Decoded:
    """An image that was decoded whole."""

    header: Header
    planes: Planes

    @property
    def bgr(self) -> np.ndarray:
        """uint8 [H, W, 3] on the stored grid: before orientation, ICC and alpha. Of 16-bit channels the
        upper eight bits, as libpng and Pillow take them; of an animation the first frame.
        """
        return self.planes.bgr

    @property
    def notes(self) -> list[str]:
        """What was odd but harmless: a profile that could not be used, stray bytes."""
        return self.planes.notes

    def gray(self) -> np.ndarray:
        """uint8 [H, W] on the stored grid: OpenCV's BGR2GRAY (0.299 R + 0.587 G + 0.114 B in fixed point)."""
        import cv2

        return cv2.cvtColor(self.bgr, cv2.COLOR_BGR2GRAY)

    def rgb(self, box: Box | None = None, long_side: int | None = None) -> np.ndarray:
        """uint8 [H', W', 3], upright sRGB, alpha over white; of `box` only where one is given.

        `long_side` in pixels: larger images are shrunk to it, before their colours are converted.
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
        """uint8 [H, W, 3], upright sRGB as if nothing were transparent: where `alpha` is 0, whatever the file
        stores there.
        """
        return self._converted(np.ascontiguousarray(self._upright()))

    def alpha(self) -> np.ndarray | None:
        """uint8 [H, W], upright, 255 is opaque; None where every pixel is."""
        alpha = self.planes.alpha
        return None if alpha is None else upright(alpha, self.header.orientation)

    def _upright(self) -> np.ndarray:
        planes = self.planes
        return upright(planes.bgr if planes.cmyk is None else planes.cmyk, self.header.orientation)

    def _converted(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels as they are stored, BGR or CMYK, to sRGB."""
        import cv2

        planes = self.planes
        if planes.cmyk is None:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        return pixels if planes.conversion is None else planes.conversion.apply(pixels)


def read_bytes(path: Path | str, limits: PixelLimits | None = None, version: str | None = None) -> bytes:
    """All bytes of a file, of one version of it.

    Raises `PixelFault` when it cannot be read, is empty, exceeds the limit, changes while it is read, or has
    another `version` (`uhr.base.files.file_version`) than the one that was listed.
    """
    limits = limits or PixelLimits()
    with opened(path, version) as handle:
        size = os.fstat(handle).st_size
        _check_bytes(size, limits)
        with open(handle, "rb", closefd=False) as file:
            # no further: what is appended meanwhile may have no end
            return file.read(size)


def _check_bytes(size: int, limits: PixelLimits) -> None:
    if size == 0:
        raise PixelFault("empty file", "the file has no bytes")
    if size > limits.file_bytes:
        words = f"{human_bytes(size)}, more than the limit of {human_bytes(limits.file_bytes)}"
        raise PixelFault("too large", words)


def decode(data: bytes, limits: PixelLimits | None = None, header: Header | None = None) -> Decoded:
    """The whole image in `data`. Raises `PixelFault` and nothing else, whatever the bytes are.

    `header` spares the second look where `read_header(data)` is known already.
    """
    limits = limits or PixelLimits()
    _check_bytes(len(data), limits)
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
    """Blended in the file's own encoding, rounded: (c a + white (255 - a)) / 255."""
    weight = alpha.astype(np.uint16)[..., None]
    blend = pixels * weight + np.uint16(white) * (255 - weight) + np.uint16(127)
    return (blend // 255).astype(np.uint8)


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, C]: averaged over areas along a side that shrinks, Lanczos where it grows."""
    import cv2

    old_height, old_width = pixels.shape[:2]
    shrunk = (min(width, old_width), min(height, old_height))
    if shrunk != (old_width, old_height):
        pixels = cv2.resize(pixels, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (width, height):
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LANCZOS4)
    return pixels


def fit(pixels: np.ndarray, long_side: int) -> np.ndarray:
    """Shrunk so that the longer side is `long_side`; as it is where that is no shrinking."""
    height, width = pixels.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1:
        return pixels
    return resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))


def jpeg_preview(rgb: np.ndarray, long_side: int = 320, quality: int = 82) -> tuple[bytes, int, int]:
    """A small JPEG for people: its bytes, width and height in pixels."""
    import cv2

    small = np.ascontiguousarray(fit(rgb, long_side)[..., ::-1])
    done, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV encodes every uint8 image"
    return data.tobytes(), small.shape[1], small.shape[0]
