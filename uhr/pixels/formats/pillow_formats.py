"""Call Pillow without its size guard, and with faults in place of exceptions.

Formats are always named, since its plugins recognise images in almost any bytes (TGA) or start programs
(EPS). Pillow's mode and depth of a file are not used: they may differ from the file's.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from uhr.pixels.types import PixelFault

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


_LOCK = threading.Lock()


@contextlib.contextmanager
def _unhindered() -> Generator[None]:
    """Disable Pillow's size guard and warnings: our limits apply to all formats alike."""
    from PIL import Image

    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guard, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = guard


def open_image(file: Any, formats: tuple[str, ...]) -> Image.Image:
    """Open the image in a binary file as a lazy Pillow image of one of `formats`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with _unhindered():
            return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise PixelFault("corrupt", "its header is damaged") from None
    except OSError as error:
        if "nsupported" in str(error):
            raise PixelFault("unsupported", f"a variant that is not read here ({error})") from None
        raise PixelFault("corrupt", f"the header cannot be read ({error})") from None
    except Exception as error:  # noqa: BLE001 - parsers meet hostile bytes with any exception; the message is kept
        raise PixelFault("corrupt", f"the header cannot be read ({type(error).__name__}: {error})") from None


def load(image: Image.Image) -> Image.Image:
    """Decode the first frame in place. Raises `PixelFault` for any error."""
    try:
        with _unhindered():
            image.load()
    except MemoryError:
        raise PixelFault("too large", "the memory does not suffice to decode it") from None
    except Exception as error:  # noqa: BLE001 - decoders meet hostile bytes with any exception; the message is kept
        truncated = "truncated" in str(error) or isinstance(error, EOFError)
        message = f"the {image.format} cannot be decoded ({type(error).__name__}: {error})"
        raise PixelFault("truncated" if truncated else "corrupt", message) from None
    return image


def converted(pixels: np.ndarray, mode: str, to: str) -> np.ndarray:
    """Convert uint8 [H, W, C] from one of Pillow's modes to another, by Pillow's own arithmetic."""
    import numpy as np
    from PIL import Image

    height, width = pixels.shape[:2]
    image = Image.frombuffer(mode, (width, height), np.ascontiguousarray(pixels), "raw", mode, 0, 1)
    return np.array(image.convert(to))
