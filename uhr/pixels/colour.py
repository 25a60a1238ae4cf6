"""ICC profiles: from a picture's own colours to sRGB."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from uhr.pixels.code_points import from_code_points

_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space of a profile -> the Pillow mode that its transform reads."""

_SAME = 2
"""8-bit levels: a profile that moves no colour of the lattice by more is sRGB under another name."""


@dataclass(frozen=True)
class Conversion:
    """What a profile asks for. `transform` is a Pillow CMS transform out of `mode` (RGB, L or CMYK), or None
    where the colours are to stay as they are; `note` says why, when that is not because they are sRGB
    already.
    """

    mode: str
    transform: Any = None
    note: str = ""

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] RGB or [H, W, 4] CMYK in, uint8 [H, W, 3] sRGB out."""
        from PIL import Image, ImageCms

        if self.transform is None:
            return pixels
        grid = np.ascontiguousarray(pixels[..., 0] if self.mode == "L" else pixels)
        height, width = grid.shape[:2]
        image = Image.frombuffer(self.mode, (width, height), grid, "raw", self.mode, 0, 1)
        return np.array(ImageCms.applyTransform(image, self.transform))


def hdr_curve(profile: bytes) -> str:
    """Why a profile with a `cicp` tag (ICC.1:2022, 9.2.17) describes no image that sRGB can show, or ""."""
    count = int.from_bytes(profile[128:132], "big")
    for entry in range(132, 132 + 12 * min(count, 100), 12):
        if profile[entry : entry + 4] == b"cicp":
            start = int.from_bytes(profile[entry + 4 : entry + 8], "big")
            primaries, transfer = (profile[start + 8 : start + 10] + b"\x02\x02")[:2]
            return from_code_points(primaries, transfer, "the ICC profile").unsupported
    return ""


@functools.lru_cache(maxsize=32)
def conversion(profile: bytes, mode: str) -> Conversion:
    """The conversion from `profile` to sRGB for pixels of `mode` (RGB, L or CMYK): relative colorimetric with
    black point compensation. A profile that is broken or of another colour space leaves the pixels alone.
    """
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        reads = _SPACES.get(space, "")
        if reads == "RGB" and mode == "L":
            mode = "RGB"  # gray pixels under an RGB profile are common: r = g = b
        if reads != mode:
            return Conversion(mode, note=f"ICC profile ignored: it is for {space}, the picture is {mode}")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ImageCms.PyCMSError, ValueError, TypeError) as error:
        return Conversion(mode, note=f"ICC profile ignored: it cannot be used ({error})")
    built = Conversion(mode, transform)
    return built if mode == "CMYK" or _moves_colours(built) else Conversion(mode)


def _moves_colours(built: Conversion) -> bool:
    """Whether a lattice of 9 x 9 x 9 colours comes out changed."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    if built.mode == "L":
        lattice[..., 1:] = lattice[..., :1]
    return bool(np.abs(built.apply(lattice).astype(int) - lattice).max() > _SAME)
