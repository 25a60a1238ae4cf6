"""A picture that a user gives: opened for a sampler, and what it made of it put back into the same frame.

What is kept apart and put back: transparency, enlarged as the colours are, and the ICC profile. What comes
back is upright, gray if the given picture was, and of 8 bits a value (of deeper ones the upper eight are
taken). EXIF data (place, camera) are not passed on.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from uhr.base.errors import UserError
from uhr.models.filters import bicubic
from uhr.models.fitting import Fit
from uhr.models.sampling.colours import Colours, colours_of
from uhr.models.sizes import Size

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "QOI", "TIFF")
"""A fixed list: Pillow's other plugins see pictures in almost any bytes (TGA) or start programs (EPS)."""

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
GRAY = ("1", "L", "LA", "La")

_READ_BEHIND = 8
"""Least side in px at which the colours of a picture's hidden parts are looked for."""


@dataclass(frozen=True)
class Given:
    """An opened picture, upright. `rgb` is what a model is shown: sRGB, 8 bits. `alpha` is None where every
    pixel is opaque. `notes` are what a reader of the result must know."""

    rgb: Image
    alpha: Image | None
    gray: bool
    colours: Colours
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        """Height and width in px."""
        return self.rgb.height, self.rgb.width

    def hand(self, fit: Fit) -> torch.Tensor:
        """What a sampler is handed: float32 [1, 3, *fit.handed], in [0, 1] but for overshoots."""
        return fit.hand(_tensor(self.rgb))

    def put_back(self, painted: Image, fit: Fit) -> Image:
        """The finished picture, `fit.target` px, of what a sampler painted (sRGB, `fit.made` px): cut, and
        with the given picture's colours, profile and transparency."""
        found = fit.cut(painted.convert("RGB"))
        if self.gray:
            found = found.convert("L").convert("RGB")
        found = self.colours.outwards(found)
        if self.gray and self.colours.profile is None:
            found = found.convert("L")
        found.info.clear()
        if self.alpha is not None:
            found.putalpha(_image(bicubic(_tensor(self.alpha), *fit.target)))
        if self.colours.profile is not None:
            found.info["icc_profile"] = self.colours.profile
        return found


def open_picture(path: Path | str) -> Given:
    """The first picture in a file, whole. UserError, in one line, for whatever is no picture or too large
    (179 megapixels, Pillow's guard against bombs)."""
    try:
        return _opened(Path(path))
    except FileNotFoundError:
        raise UserError(f"picture {path} is not there", "name a picture, or a folder of pictures") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder", "name a picture in it") from None
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"picture {path} does not fit into memory", "cut it into parts") from None
    except Exception as error:  # noqa: BLE001 - parsers meet hostile bytes with any exception; it is told on
        raise _fault(path, error) from error


def _fault(path: Path | str, error: Exception) -> UserError:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError):
        return UserError(f"picture {path} has more than 179 megapixels", "cut it into parts, or shrink it")
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path} is no picture that can be read", f"known formats: {', '.join(FORMATS)}")
    words = f"{type(error).__name__}: {error}".replace("\n", " ")
    return UserError(f"picture {path} is damaged ({words})", "open it in an editor, and save it again")


def _opened(path: Path) -> Given:
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        # of sizes under Pillow's own limit, and of metadata that nobody reads here
        warnings.simplefilter("ignore")
        with Image.open(path, formats=FORMATS) as file:
            # a TIFF turns itself upright when it is loaded
            file.load()
            picture = ImageOps.exif_transpose(file)
    if picture.mode.startswith("I;16"):
        picture = _upper_bits(picture)
    if picture.mode not in MODES:
        what = f"picture {path} has {picture.mode} pixels, which have no agreed black and white"
        raise UserError(what, "save it with 8 or 16 bits a channel")
    return _given(picture)


def _given(picture: Image) -> Given:
    profile = picture.info.get("icc_profile") or None
    alpha = None
    if picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A")
        alpha = None if alpha.getextrema()[0] == 255 else alpha
    gray = picture.mode in GRAY
    stored = picture if picture.mode == "CMYK" else picture.convert("L" if gray else "RGB")
    colours = colours_of(stored.mode, profile)
    if not gray and colours.note and profile is not None:
        # gray with alpha of 16 bits comes as RGBA, under its gray profile
        as_gray = colours_of("L", profile)
        if not as_gray.note and _is_gray(stored):
            stored, gray, colours = stored.convert("L"), True, as_gray
    rgb = colours.inwards(stored)
    rgb.info.clear()
    if alpha is not None:
        rgb = _without_hidden(rgb, alpha)
    return Given(rgb, alpha, gray, colours, (colours.note,) if colours.note else ())


def _upper_bits(picture: Image) -> Image:
    import numpy as np
    from PIL import Image

    found = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    found.info.update(picture.info)
    return found


def _is_gray(picture: Image) -> bool:
    from PIL import ImageChops

    red, green, blue = picture.split()
    return not (ImageChops.difference(red, green).getbbox() or ImageChops.difference(red, blue).getbbox())


def _without_hidden(rgb: Image, alpha: Image) -> Image:
    """The picture with the colours of what is wholly transparent taken from what is visible nearby: nobody
    ever saw them, and an enlargement would let them shine through along every edge."""
    visible, colour = _tensor(alpha), _tensor(rgb)
    weights = visible
    sums, filled = colour * weights, torch.where(weights > 0, colour, -1.0)
    size = (int(visible.shape[-2]), int(visible.shape[-1]))
    while bool((filled < 0).any()) and max(sums.shape[-2:]) > 1:
        sums, weights = (
            torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
            for x in (sums, weights)
        )
        mean = torch.where(weights > 0, sums / weights.clamp(min=1e-12), -1.0)
        spread = torch.nn.functional.interpolate(mean, size, mode="nearest")
        filled = torch.where(filled < 0, spread, filled)
    return _image(filled.clamp(0, 1))


def _tensor(picture: Image) -> torch.Tensor:
    """float32 [1, C, h, w] in [0, 1]."""
    import numpy as np

    array = torch.from_numpy(np.array(picture)).float() / 255
    return array[None, None] if array.ndim == 2 else array.movedim(-1, 0)[None]


def _image(values: torch.Tensor) -> Any:
    """[1, C, h, w] -> PIL, L or RGB, clipped to [0, 1]."""
    from PIL import Image

    array = (values[0].clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
