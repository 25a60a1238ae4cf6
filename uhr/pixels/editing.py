"""Open an image for editing: its pixels, its transparency, and the conversion back to its own colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uhr.pixels.colour import Restoration, restoration
from uhr.pixels.decode import Decoded, PixelLimits, decode
from uhr.pixels.formats import gif
from uhr.pixels.formats.tiff.directory import first_directory
from uhr.pixels.types import FileBytes, Header


@dataclass(frozen=True, eq=False)
class Editable:
    """An image, upright and of 8 bits per channel.

    `rgb` is uint8 [H, W, 3] in sRGB, `alpha` uint8 [H, W] (255 is opaque) or None if all is opaque. `gray` is
    whether the file stores gray values. `restoration` converts edited pixels to the file's own colours.
    `notes` list what of the file was ignored or changed.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None
    gray: bool
    restoration: Restoration
    notes: tuple[str, ...]


def open_editable(data: bytes, limits: PixelLimits | None = None) -> Editable:
    """Open the image in the bytes of a file. Raises `PixelFault` and nothing else, whatever the bytes are."""
    decoded = decode(data, limits)
    header = decoded.header
    gray = header.mode in ("L", "LA")
    mode = "L" if gray else "CMYK" if header.mode == "CMYK" else "RGB"
    found = restoration(decoded.planes.profile, mode)
    notes = [*_left_out(data, decoded), *decoded.notes, *([found.note] if found.note else ())]
    return Editable(decoded.opaque_rgb(), decoded.alpha(), gray, found, tuple(notes))


def _left_out(data: bytes, decoded: Decoded) -> list[str]:
    notes = []
    if _several_frames(data, decoded.header):
        notes.append("of several frames the first is taken")
    depth = decoded.header.bit_depth
    if depth is not None and depth > 8:
        notes.append(f"of {depth} bits a value the upper eight are taken")
    return notes


def _several_frames(data: bytes, header: Header) -> bool:
    """Whether the header announces a second frame or page.

    Previews and depth maps after a JPEG's image, and the sizes of an icon, are not frames.
    """
    if header.format == "GIF":
        return gif.several_frames(data)
    if header.format == "TIFF":
        return first_directory(FileBytes(data, len(data))).following != 0
    return header.animated
