"""Bytes to pixels: the only decode there is.

JPEG, PNG and WebP are decoded by OpenCV (to the bit what Pillow gives, and faster), the rest by Pillow.
OpenCV and libjpeg leave a damaged picture partly gray with no more than a line on standard error: that line
is read here.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from uhr.base.config import Config
from uhr.base.files import human_bytes
from uhr.manifests import colour, pillow_formats
from uhr.manifests.decoder_noise import captured
from uhr.manifests.headers import FaultKind, Header, PixelFault, open_file, read_header, unreadable

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
    """A picture that was decoded whole.

    `bgr` is uint8 [H, W, 3] on the stored grid: before orientation, ICC and alpha; of 16-bit channels the
    upper eight bits, as libpng and Pillow take them; of an animation the first frame. `notes` says what was
    odd but harmless.
    """

    header: Header
    bgr: np.ndarray
    alpha: np.ndarray | None = None
    cmyk: np.ndarray | None = None
    conversion: colour.Conversion | None = None
    notes: list[str] = field(default_factory=list)

    def gray(self) -> np.ndarray:
        """uint8 [H, W] on the stored grid: OpenCV's BGR2GRAY (0.299 R + 0.587 G + 0.114 B in fixed point)."""
        import cv2

        return cv2.cvtColor(self.bgr, cv2.COLOR_BGR2GRAY)

    def rgb(self, box: Box | None = None, long_side: int | None = None) -> np.ndarray:
        """uint8 [H', W', 3], upright sRGB, alpha over white; of `box` only where one is given.

        `long_side` in pixels: larger pictures are shrunk to it, before their colours are converted.
        """
        import cv2

        stored = self.bgr if self.cmyk is None else self.cmyk
        pixels = _crop(upright(stored, self.header.orientation), box)
        if self.alpha is not None:
            pixels = _over_white(pixels, _crop(upright(self.alpha, self.header.orientation), box))
        pixels = np.ascontiguousarray(pixels)
        if long_side is not None:
            pixels = fit(pixels, long_side)
        if self.cmyk is None:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        return pixels if self.conversion is None else self.conversion.apply(pixels)


def read_bytes(path: Path | str, limits: PixelLimits | None = None) -> bytes:
    """All bytes of a file. `PixelFault` when it cannot be read, is empty, or exceeds the limit."""
    limits = limits or PixelLimits()
    handle = open_file(path)
    with open(handle, "rb", buffering=0) as file:
        try:
            _check_bytes(os.fstat(handle).st_size, limits)
            return file.readall()
        except OSError as error:
            raise unreadable(error) from None


def _check_bytes(size: int, limits: PixelLimits) -> None:
    if size == 0:
        raise PixelFault("empty file", "the file has no bytes")
    if size > limits.file_bytes:
        words = f"{human_bytes(size)}, more than the limit of {human_bytes(limits.file_bytes)}"
        raise PixelFault("too large", words)


def decode(data: bytes, limits: PixelLimits | None = None, header: Header | None = None) -> Decoded:
    """The whole picture in `data`. Raises `PixelFault` and nothing else, whatever the bytes are.

    `header` spares the second look where `read_header(data)` is known already.
    """
    limits = limits or PixelLimits()
    _check_bytes(len(data), limits)
    header = header or read_header(data)
    limits.check(header)
    with captured() as noise:
        if header.format in ("JPEG", "PNG", "WEBP"):
            decoded = _with_opencv(data, header)
        else:
            decoded = _with_pillow(data, header)
    if decoded is None:
        raise _fault(data, header, noise)
    _check_noise(noise)
    decoded.notes += noise
    if decoded.bgr.shape[:2] != (header.raw_height, header.raw_width):
        found = f"{decoded.bgr.shape[1]} x {decoded.bgr.shape[0]}"
        raise PixelFault(
            "corrupt", f"the header says {header.raw_width} x {header.raw_height}, found {found}"
        )
    if decoded.alpha is not None and decoded.alpha.min() == 255:
        decoded.alpha = None
    if header.has_icc:
        _attach_profile(decoded, data)
    return decoded


def _with_opencv(data: bytes, header: Header) -> Decoded | None:
    """None where OpenCV gives no picture."""
    import cv2

    if header.format == "JPEG" and header.bit_depth != 8:
        raise PixelFault("unsupported", f"a JPEG of {header.bit_depth} bits per channel")
    wants_alpha = header.has_alpha and header.mode != "L"
    flags = cv2.IMREAD_UNCHANGED if wants_alpha else cv2.IMREAD_COLOR
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise PixelFault("too large", "the memory does not suffice to decode it") from None
        raise PixelFault("corrupt", f"the decoder gave up ({error.err})") from None
    if pixels is None or pixels.ndim != 3:
        return None
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.shape[2] == 4:
        return Decoded(header, cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR), alpha=pixels[..., 3])
    decoded = Decoded(header, pixels)
    if header.has_alpha:
        _add_colour_key(decoded, data)
    return decoded


def _add_colour_key(decoded: Decoded, data: bytes) -> None:
    """Transparency of a gray PNG's colour key, which OpenCV does not give."""
    if decoded.header.bit_depth == 16:
        decoded.notes.append("the transparent gray value of a 16-bit PNG is ignored")
        return
    image = pillow_formats.load(pillow_formats.open_image(io.BytesIO(data), (decoded.header.format,)))
    decoded.alpha = np.array(image.convert("RGBA").getchannel("A"))


def _with_pillow(data: bytes, header: Header) -> Decoded:
    image = pillow_formats.load(pillow_formats.open_image(io.BytesIO(data)))
    rgb, alpha, cmyk = pillow_formats.planes(image, header)
    if header.format == "TIFF":
        # Pillow turns TIFFs upright by itself: back to the stored grid
        back = {6: 8, 8: 6}.get(header.orientation, header.orientation)
        rgb = upright(rgb, back)
        alpha = None if alpha is None else upright(alpha, back)
        cmyk = None if cmyk is None else upright(cmyk, back)
    return Decoded(header, np.ascontiguousarray(rgb[..., ::-1]), alpha, cmyk)


def _attach_profile(decoded: Decoded, data: bytes) -> None:
    header = decoded.header
    formats = {"JPEG": ("JPEG", "MPO")}.get(header.format, (header.format,))
    try:
        image = pillow_formats.open_image(io.BytesIO(data), formats)
        profile = image.info.get("icc_profile")
        if not profile:
            decoded.notes.append("ICC profile ignored: it cannot be read")
            return
        mode = {"L": "L", "LA": "L", "CMYK": "CMYK"}.get(header.mode, "RGB")
        wanted = colour.conversion(bytes(profile), mode)
        if wanted.note:
            decoded.notes.append(wanted.note)
        elif wanted.transform is not None:
            if mode == "CMYK" and decoded.cmyk is None:
                decoded.cmyk = np.array(pillow_formats.load(image))
            decoded.conversion = wanted
    except PixelFault as fault:
        decoded.notes.append(f"ICC profile ignored: {fault.message}")
    if decoded.conversion is None:
        decoded.cmyk = None


def _check_noise(noise: list[str]) -> None:
    """Damage that libjpeg fills with gray or garbage and goes on. Stray bytes between segments do no harm."""
    for line in noise:
        harmless = "extraneous bytes" in line
        if ("Corrupt JPEG data" in line and not harmless) or "Premature end" in line:
            raise PixelFault("corrupt", line)


def _fault(data: bytes, header: Header, noise: list[str]) -> PixelFault:
    """Why a decoder gave nothing: the file stops early, or its bytes are wrong."""
    words = "; ".join(noise)
    kind: FaultKind = "corrupt"
    if "nsupported" in words:
        kind = "unsupported"
    elif _ends_early(data, header.format):
        kind = "truncated"
    what = {"truncated": "ends before the picture does", "unsupported": "is in a variant not read here"}
    return PixelFault(kind, f"the {header.format} {what.get(kind, 'is damaged')}{words and f' ({words})'}")


def _ends_early(data: bytes, format: str) -> bool:
    if format == "PNG":
        return b"IEND" not in data[-4096:] and data.rfind(b"IEND\xaeB`\x82") < 0
    if format == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    # EOI behind the last scan: one in an embedded thumbnail lies before it
    return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of [H, W, ...] as EXIF orientation 1..8 says it is to be displayed."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _crop(pixels: np.ndarray, box: Box | None) -> np.ndarray:
    if box is None:
        return pixels
    x, y, width, height = box
    inside = 0 <= x < x + width <= pixels.shape[1] and 0 <= y < y + height <= pixels.shape[0]
    assert inside, f"box {box} in a picture of {pixels.shape[:2]}"
    return pixels[y : y + height, x : x + width]


def _over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blended in the file's own encoding, rounded: (c a + 255 (255 - a)) / 255."""
    weight = alpha.astype(np.uint16)[..., None]
    blend = pixels * weight + np.uint16(255) * (255 - weight) + np.uint16(127)
    return (blend // 255).astype(np.uint8)


def load_rgb(
    source: Path | str | bytes, box: Box | None = None, limits: PixelLimits | None = None
) -> np.ndarray:
    """Upright sRGB pixels, uint8 [H, W, 3], of a file or its bytes; of `box` only where one is given."""
    data = source if isinstance(source, bytes) else read_bytes(source, limits)
    return decode(data, limits).rgb(box)


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
    assert done, "OpenCV encodes every uint8 picture"
    return data.tobytes(), small.shape[1], small.shape[0]
