"""Convert from the colours of a file to sRGB and back by ICC profiles. Nothing else converts colours.

Relative colorimetric intent with black point compensation, in 8 bits, in both directions. Colours outside of
sRGB are clipped.
"""

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
"""8-bit levels: a profile that changes no colour of the lattice by more is treated as sRGB."""


@dataclass(frozen=True)
class Conversion:
    """A conversion to sRGB. `transform` is a Pillow CMS transform from `mode` (RGB, L or CMYK).

    It is None if the colours are not converted; `note` is the reason, unless they are sRGB.
    """

    mode: str
    transform: Any = None
    note: str = ""

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Convert uint8 [H, W, 3] RGB or [H, W, 4] CMYK to uint8 [H, W, 3] sRGB."""
        if self.transform is None:
            return pixels
        return _applied(self.transform, self.mode, pixels[..., 0] if self.mode == "L" else pixels)


@dataclass(frozen=True)
class Restoration:
    """The conversion from sRGB back to the colours of the file that an edited image came from.

    `profile` is the ICC profile to embed with the result of `apply`, None for sRGB without one. `mode` is its
    mode in the file, RGB or L. `transform` is a Pillow CMS transform from RGB to `mode`, or None if the
    pixels stay sRGB. `note` is a note for the user about the result.
    """

    profile: bytes | None = None
    mode: str = "RGB"
    transform: Any = None
    note: str = ""

    def apply(self, rgb: np.ndarray) -> np.ndarray:
        """Convert uint8 [H, W, 3] sRGB to uint8 [H, W, 3], or [H, W] for mode L.

        For L without a transform the channels must be equal.
        """
        if self.transform is not None:
            return _applied(self.transform, "RGB", rgb)
        return rgb[..., 0] if self.mode == "L" else rgb


def hdr_curve(profile: bytes) -> str:
    """Return why sRGB cannot show an image with this profile's `cicp` tag (ICC.1:2022, 9.2.17), or ""."""
    count = int.from_bytes(profile[128:132], "big")
    for entry in range(132, 132 + 12 * min(count, 100), 12):
        if profile[entry : entry + 4] == b"cicp":
            start = int.from_bytes(profile[entry + 4 : entry + 8], "big")
            primaries, transfer = (profile[start + 8 : start + 10] + b"\x02\x02")[:2]
            return from_code_points(primaries, transfer, "the ICC profile").unsupported
    return ""


@functools.lru_cache(maxsize=32)
def conversion(profile: bytes, mode: str) -> Conversion:
    """Return the conversion from `profile` to sRGB for pixels of `mode` (RGB, L or CMYK).

    A profile that is damaged or of another colour space does not convert the pixels.
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
        transform = _transform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (OSError, ImageCms.PyCMSError, ValueError, TypeError) as error:
        return Conversion(mode, note=f"ICC profile ignored: it cannot be used ({error})")
    built = Conversion(mode, transform)
    return built if mode == "CMYK" or _moves_colours(built) else Conversion(mode)


@functools.lru_cache(maxsize=32)
def restoration(profile: bytes | None, mode: str) -> Restoration:
    """Return the conversion from sRGB back to an image of `mode` (RGB, L or CMYK) with this profile.

    - Without a profile, or with one that is damaged or for other pixels: the result is sRGB without a
      profile, gray for gray.
    - RGB or gray: the result is converted to the profile's colours, and the profile is embedded.
    - CMYK, and a profile that only converts to sRGB: the result is sRGB, and sRGB's profile is embedded.
    """
    from PIL import ImageCms

    stored = "L" if mode == "L" else "RGB"
    if profile is None:
        note = "the image is CMYK without a profile: its colours are a guess" if mode == "CMYK" else ""
        return Restoration(mode=stored, note=note)
    inwards = conversion(profile, mode)
    if inwards.note:
        return Restoration(mode=stored, note=inwards.note)
    if inwards.transform is None:
        return Restoration(profile, inwards.mode)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    if mode == "CMYK":
        return Restoration(srgb.tobytes(), note="the image was CMYK: the result is sRGB")
    try:
        back = _transform(srgb, ImageCms.ImageCmsProfile(io.BytesIO(profile)), "RGB", inwards.mode)
    except ImageCms.PyCMSError:
        note = "the image's ICC profile has no conversion from sRGB: the result is sRGB"
        return Restoration(srgb.tobytes(), note=note)
    return Restoration(profile, inwards.mode, back)


def _transform(source: Any, target: Any, reads: str, writes: str) -> Any:
    """Build a transform. Raises `ImageCms.PyCMSError` if a profile does not define it."""
    from PIL import ImageCms

    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    return ImageCms.buildTransform(source, target, reads, writes, intent, flags)


def _applied(transform: Any, mode: str, pixels: np.ndarray) -> np.ndarray:
    """Apply a Pillow CMS transform to uint8 pixels of `mode`."""
    from PIL import Image, ImageCms

    grid = np.ascontiguousarray(pixels)
    height, width = grid.shape[:2]
    image = Image.frombuffer(mode, (width, height), grid, "raw", mode, 0, 1)
    return np.array(ImageCms.applyTransform(image, transform))


def _moves_colours(built: Conversion) -> bool:
    """Whether a conversion changes a lattice of 9 x 9 x 9 colours."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    if built.mode == "L":
        lattice[..., 1:] = lattice[..., :1]
    return bool(np.abs(built.apply(lattice).astype(int) - lattice).max() > _SAME)
