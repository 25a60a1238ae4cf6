"""The formats that are opened through Pillow: GIF, TIFF, BMP, AVIF, JPEG 2000, PPM, QOI, ICO.

A fixed list: Pillow's other plugins recognise pictures in almost any bytes (TGA) or start programs (EPS).
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from uhr.pixels.types import Header, PixelFault

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG2000", "PPM", "QOI", "TIFF")

_KNOWN_BUT_CLOSED = (
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"v/1\x01", "OpenEXR"),
)
"""Signatures at an offset of real pictures that nothing installed here opens."""

_COMMON_WORDS = (b"BM", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7")
"""Signatures of BMP and PPM, so short that any text may begin with them."""

_REDUCED_RESOLUTION = 1
"""Bit of TIFF tag 254: a thumbnail, as in the first directory of many camera raw files."""

_LOCK = threading.Lock()


@contextlib.contextmanager
def _unhindered() -> Generator[None]:
    """Pillow's own size guard and its warnings off: our limits judge the size, alike for all formats."""
    from PIL import Image

    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guard, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = guard


def header(source: bytes | int, first: bytes) -> Header:
    """Header of the picture in `source` (bytes, or an open file handle), whose first bytes are `first`."""
    for offset, signature, name in _KNOWN_BUT_CLOSED:
        if first.startswith(signature, offset):
            raise PixelFault("unsupported", f"{name} pictures cannot be opened here")
    try:
        if isinstance(source, bytes):
            return header_of(open_image(io.BytesIO(source)))
        with os.fdopen(os.dup(source), "rb") as file:
            file.seek(0)
            return header_of(open_image(file))
    except PixelFault as fault:
        if fault.kind == "corrupt" and first.startswith(_COMMON_WORDS):
            raise PixelFault("not an image", "no picture format begins like this") from None
        raise


def open_image(file: Any, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The picture in a binary file as a lazy Pillow image of one of `formats`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with _unhindered():
            return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise PixelFault("not an image", "no picture format begins like this") from None
    except OSError as error:
        raise PixelFault("corrupt", f"the header cannot be read ({error})") from None
    except Exception as error:  # noqa: BLE001 - parsers meet hostile bytes with any exception; it is told on
        raise PixelFault("corrupt", f"the header cannot be read ({type(error).__name__}: {error})") from None


def header_of(image: Image.Image) -> Header:
    """The header of a Pillow image that has not been loaded yet."""
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    try:
        with _unhindered():
            # a GIF or TIFF would have to be walked to its second frame
            animated = image.format == "AVIF" and bool(getattr(image, "is_animated", False))
            if tags is None:
                width, height = image.size
                orientation = image.getexif().get(0x0112, 1) if image.format == "AVIF" else 1
            else:
                if tags.get(254, 0) & _REDUCED_RESOLUTION or 50706 in tags:
                    raise PixelFault("unsupported", "a camera raw file cannot be opened here")
                width, height, orientation = tags[256], tags[257], tags.get(0x0112, 1)
    except PixelFault:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        raise PixelFault("corrupt", f"the header cannot be read ({type(error).__name__}: {error})") from None
    mode, bit_depth = _mode(image.mode, tags)
    return Header(
        image.format or "",
        width,
        height,
        mode,
        bit_depth,
        orientation if orientation in range(1, 9) else 1,
        "A" in mode or "transparency" in image.info,
        bool(image.info.get("icc_profile")),
        animated,
    )


def _mode(mode: str, tags: Any) -> tuple[str, int]:
    """Colour model and bits per channel; TIFF's own tag knows depths that Pillow folds into 8."""
    names = {"1": ("L", 1), "I": ("L", 32), "F": ("L", 32)}
    name, depth = names.get(mode, (mode.replace("RGBX", "RGB"), 8))
    if mode.startswith("I;16"):
        name, depth = "L", 16
    bits = tags.get(258) if tags is not None else None
    if isinstance(bits, tuple) and bits and isinstance(bits[0], int) and 1 <= bits[0] <= 32:
        depth = bits[0]
    return name, depth


def load(image: Image.Image) -> Image.Image:
    """Decode the first frame in place; whatever goes wrong becomes a `PixelFault`."""
    try:
        with warnings.catch_warnings():
            # of metadata that nobody reads here
            warnings.simplefilter("ignore")
            image.load()
    except MemoryError:
        raise PixelFault("too large", "the memory does not suffice to decode it") from None
    except Exception as error:  # noqa: BLE001 - decoders meet hostile bytes with any exception; it is told on
        truncated = "truncated" in str(error) or isinstance(error, EOFError)
        words = f"the {image.format} cannot be decoded ({type(error).__name__}: {error})"
        raise PixelFault("truncated" if truncated else "corrupt", words) from None
    return image


def planes(image: Image.Image, header: Header) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """RGB uint8 [H, W, 3], alpha [H, W] or None, and CMYK [H, W, 4] or None, of a loaded image.

    Of integers of more than 8 bits the upper eight are taken. Floats and 32-bit integers have no agreed
    white: `unsupported`.
    """
    import numpy as np

    if image.mode.startswith("I;16"):
        gray = (np.asarray(image).astype(np.uint16) >> ((header.bit_depth or 16) - 8)).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2), None, None
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise PixelFault("unsupported", f"a {image.format} of {header.bit_depth}-bit {image.mode} values")
    alpha = np.array(image.convert("RGBA").getchannel("A")) if header.has_alpha else None
    cmyk = np.array(image) if image.mode == "CMYK" else None
    return np.array(image.convert("RGB")), alpha, cmyk
