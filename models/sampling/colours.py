"""From a picture's own colours to the sRGB that the models were trained on, and back.

Relative colorimetric with black point compensation, in 8 bits, both ways. Colours that sRGB has not are
clipped on the way in: a model makes none.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Turn = Callable[[Any], Any]
"""One PIL picture to another."""

SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space of a profile -> the Pillow mode whose pixels it describes."""

SAME = 2
"""8-bit levels: a profile that moves no colour of a lattice by more is sRGB under another name."""


@dataclass(frozen=True)
class Colours:
    """What a file says of its colours. `inwards` takes its pixels to sRGB (RGB), `outwards` sRGB pixels to
    those that `profile` describes; `profile` is what to embed, None for nothing; `note` is what a reader of
    the result must know."""

    inwards: Turn
    outwards: Turn
    profile: bytes | None = None
    note: str = ""


def colours_of(mode: str, profile: bytes | None) -> Colours:
    """For pixels of Pillow's mode L, RGB or CMYK and the profile in their file.

    - none: the pixels are sRGB, and nothing is embedded. CMYK goes by Pillow's formula.
    - RGB or gray: the result is brought back into the profile's colours, and it is embedded.
    - CMYK, or a profile that only reads: no RGB picture can be described by it; the result is sRGB, and
      sRGB's profile is embedded.
    - a profile that is broken or describes other pixels is ignored, and not passed on.
    """
    if profile is None:
        note = "the picture is CMYK without a profile: its colours are a guess" if mode == "CMYK" else ""
        return Colours(_to_rgb, _as_it_is, note=note)
    read = _profile(profile)
    space = "" if read is None else read.profile.xcolor_space.strip()
    if read is None or (SPACES.get(space) != mode and (space, mode) != ("RGB", "L")):
        what = "it is broken" if read is None else f"it is for {space}, the picture is {mode}"
        return Colours(_to_rgb, _as_it_is, note=f"ICC profile ignored: {what}")
    inwards = _transform(read, _srgb(), SPACES[space], "RGB")
    if inwards is None:
        return Colours(_to_rgb, _as_it_is, note="ICC profile ignored: it converts to no other colours")
    if space == "CMYK":
        note = "the picture was CMYK: the result is sRGB"
        return Colours(inwards, _as_it_is, _srgb().tobytes(), note)
    if space == "RGB" and _is_srgb(inwards):
        return Colours(_to_rgb, _as_it_is, profile)
    outwards = _transform(_srgb(), read, "RGB", SPACES[space])
    if outwards is None:
        note = "the picture's ICC profile only reads colours: the result is sRGB"
        return Colours(_after_rgb(inwards, space), _as_it_is, _srgb().tobytes(), note)
    return Colours(_after_rgb(inwards, space), outwards, profile)


def _as_it_is(picture: Any) -> Any:
    return picture


def _to_rgb(picture: Any) -> Any:
    return picture.convert("RGB")


def _after_rgb(inwards: Turn, space: str) -> Turn:
    """Gray pixels under an RGB profile are common: r = g = b."""
    return (lambda picture: inwards(picture.convert("RGB"))) if space == "RGB" else inwards


@functools.cache
def _srgb() -> Any:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _profile(data: bytes) -> Any:
    """None where the bytes are no profile."""
    from PIL import ImageCms

    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(data))
    except (OSError, ValueError, TypeError):
        return None


def _transform(source: Any, to: Any, reads: str, writes: str) -> Turn | None:
    """None where a profile does not say how."""
    from PIL import ImageCms

    try:
        built = ImageCms.buildTransform(
            source,
            to,
            reads,
            writes,
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return lambda picture: ImageCms.applyTransform(picture, built)


def _is_srgb(inwards: Turn) -> bool:
    """Whether a lattice of 9 x 9 x 9 colours stays as it is."""
    import numpy as np
    from PIL import Image

    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
    moved = np.asarray(inwards(Image.fromarray(lattice))).astype(int)
    return bool(np.abs(moved - lattice).max() <= SAME)
