"""Images as bytes, for the tests of headers and pixels."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image, ImageCms

MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("L", "RGB", "RGBA", "CMYK", "I;16"),
    "GIF": ("P",),
    "BMP": ("L", "RGB"),
    "AVIF": ("RGB", "RGBA"),
}


def image(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth colours with a little noise, of any Pillow mode."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + y) % 256, 255 - x % 256]
    array = np.clip(np.stack(planes, -1) + rng.integers(-9, 10, (height, width, 4)), 0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(array[..., 0].astype(np.uint16) * 257 + 5)
    image = Image.fromarray(array, "RGBA")
    if mode == "CMYK":
        return image.convert("RGB").convert("CMYK")
    return image.convert("RGB").convert(mode) if mode in ("1", "L", "P", "RGB") else image.convert(mode)


def encode(image: Image.Image, format: str, orientation: int | None = None, **settings: Any) -> bytes:
    """The bytes of a file, with EXIF orientation where one is given."""
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        settings["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


@st.composite
def files(draw: st.DrawFn, formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP")) -> tuple[bytes, str]:
    """Bytes of a small image file and its format, over modes, sizes, orientations and encoder settings."""
    format = draw(st.sampled_from(formats))
    mode = draw(st.sampled_from(MODES[format]))
    drawn = image(draw(st.integers(1, 70)), draw(st.integers(1, 70)), mode, draw(st.integers(0, 3)))
    settings: dict[str, Any] = {}
    if format == "JPEG":
        settings["progressive"] = draw(st.booleans())
        settings["quality"] = draw(st.sampled_from((30, 75, 95)))
        settings["restart_marker_blocks"] = draw(st.sampled_from((0, 1, 3)))
        settings["comment"] = b"x" * draw(st.sampled_from((0, 10, 20_000)))
    if format == "WEBP":
        settings["lossless"] = draw(st.booleans())
    if format in ("JPEG", "PNG", "WEBP", "TIFF") and draw(st.booleans()):
        settings["icc_profile"] = srgb_profile()
    orientation = (
        draw(st.sampled_from((None, *range(1, 9)))) if format in ("JPEG", "PNG", "WEBP", "TIFF") else None
    )
    return encode(drawn, format, orientation, **settings), format


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def wide_gamut_profile(gamma: float = 2.2) -> bytes:
    """A matrix profile with AdobeRGB's primaries, put together tag by tag (ICC.1:2010)."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {
        b"rXYZ": _xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": _xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": _xyz(0.14919, 0.06322, 0.74457),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def gray_profile(gamma: float) -> bytes:
    """A matrix profile of one channel."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def cmyk_profile() -> bytes:
    """A printer whose inks darken each other: the sixteen full overprints in Lab, linear between them."""
    inks = np.array(list(np.ndindex(2, 2, 2, 2)))
    c, m, y, k = inks.T
    lightness = 100 * (1 - 0.9 * k) * (1 - 0.4 * c) * (1 - 0.5 * m) * (1 - 0.1 * y)
    a = (1 - k) * (-30 * c + 60 * m)
    b = (1 - k) * (-40 * c + 70 * y)
    grid = np.stack([lightness * 2.55, a + 128, b + 128], -1).round().clip(0, 255).astype(np.uint8)
    identity = b"".join(_s15(float(row == column)) for row in range(3) for column in range(3))
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + grid.tobytes() + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def _s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ \0\0\0\0" + _s15(x) + _s15(y) + _s15(z)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    name = b"made for a test\0"
    white = (0.9642, 1.0, 0.8249)
    tags = tags | {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"wtpt": _xyz(*white),
        b"cprt": b"text\0\0\0\0none\0",
    }
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", 0, b"none", 0x02100000, kind, space, connection) + bytes(12) + b"acsp"
    head += bytes(28) + _xyz(*white)[8:]
    whole = head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def png_with_header(header: bytes) -> bytes:
    """A PNG with this IHDR and a few zeros for an image."""
    return png(header, bytes(64))


def png(header: bytes, rows: bytes) -> bytes:
    """A PNG of this IHDR and these rows, each behind its filter's byte."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts
