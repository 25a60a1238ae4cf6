"""A picture that a user gives: opened for a sampler, and what it made of it put back into the same frame.

What is kept apart and put back: transparency, enlarged as the colours are, and the ICC profile. What comes
back is upright, gray if the given picture was, and of 8 bits a value (of deeper ones the upper eight are
taken). EXIF data (place, camera) are not passed on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
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

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "QOI", "TIFF")
"""A fixed list: Pillow's other plugins see pictures in almost any bytes (TGA) or start programs (EPS)."""

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
GRAY = ("1", "L", "LA")


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
        assert found.size == fit.target[::-1], (painted.size, fit)
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
    """The first picture in a file, whole. UserError, in one line, for whatever is no picture, is damaged, or
    is larger than 179 megapixels (Pillow's guard against bombs)."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"picture {path} is not there", "name a picture, or a folder of pictures")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise UserError(f"picture {path} is {what}", "name a single picture")
    try:
        return _opened(path)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"picture {path} does not fit into memory", "cut it into parts") from error
    except Exception as error:
        # parsers meet hostile bytes with any exception
        raise _fault(path, error) from error


def _fault(path: Path, error: Exception) -> UserError:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError):
        return UserError(f"picture {path} has more than 179 megapixels", "cut it into parts, or shrink it")
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"picture {path} cannot be read ({error.strerror})", "is it yours to read?")
    if isinstance(error, UnidentifiedImageError):
        return UserError(f"{path} is no picture that can be read", f"known formats: {', '.join(FORMATS)}")
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return UserError(f"picture {path} is damaged ({words})", "open it in an editor and save it again")


def _opened(path: Path) -> Given:
    from PIL import Image, ImageOps

    with warnings.catch_warnings(), open(path, "rb") as opened:
        # of sizes under Pillow's limit, and of metadata that nobody reads here
        warnings.simplefilter("ignore")
        # by handle: given a path, Pillow maps some TIFFs into memory, and then turns them upright wrongly
        with Image.open(opened, formats=FORMATS) as file:
            # gray with alpha, of 16 bits, is opened as colours
            gray = file.mode in GRAY or any(tile[-1] == "LA;16B" for tile in file.tile)
            notes = tuple(_left_out(file))
            # loaded first: a TIFF turns itself upright then
            file.load()
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I;16") or (picture.mode == "I" and file.format == "PPM"):
                picture, gray = _upper_bits(picture, file), True
    if picture.mode not in MODES:
        what = f"picture {path} has values of kind {picture.mode}, of which none is agreed to be white"
        raise UserError(what, "save it with 8 or 16 bits a channel")
    return _given(picture, gray, notes)


def _left_out(file: Any) -> Iterator[str]:
    """What of an opened file, not loaded yet, is not taken."""
    # a photograph's second picture (MPO) is a thumbnail, depth or brightness
    if file.format != "MPO" and getattr(file, "is_animated", False):
        yield "of several frames the first is taken"
    if any(";16" in str(tile[-1]) for tile in file.tile):
        yield "of 16 bits a value the upper eight are taken"


def _upper_bits(picture: Image, file: Any) -> Image:
    """Mode L of gray integers of more than 8 bits; a TIFF says of how many. No transparency."""
    import numpy as np
    from PIL import Image

    tags = getattr(file, "tag_v2", None)
    depth = 16 if tags is None else tags.get(258, (16,))[0]
    found = Image.fromarray((np.asarray(picture).astype(np.uint16) >> (depth - 8)).astype(np.uint8))
    if "icc_profile" in picture.info:
        found.info["icc_profile"] = picture.info["icc_profile"]
    return found


def _given(picture: Image, gray: bool, notes: tuple[str, ...]) -> Given:
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    if alpha is not None and alpha.getextrema()[0] == 255:
        alpha = None
    stored = picture if picture.mode == "CMYK" else picture.convert("L" if gray else "RGB")
    colours = colours_of(stored.mode, picture.info.get("icc_profile") or None)
    rgb = colours.inwards(stored)
    rgb.info.clear()
    if alpha is not None:
        rgb = without_hidden(rgb, alpha)
    return Given(rgb, alpha, gray, colours, (*notes, *([colours.note] if colours.note else ())))


def without_hidden(rgb: Image, alpha: Image) -> Image:
    """The picture with the colours of what is wholly transparent taken from what is visible around it: nobody
    ever saw them, and an enlargement would mix them into every edge. Smaller and smaller copies, down to one
    in which all is visible, tell what is around."""
    from PIL import Image

    visible = alpha.point([0] + [255] * 255)
    if visible.getextrema() in ((0, 0), (255, 255)):
        return rgb
    both = rgb.copy()
    both.putalpha(visible)
    small = both.reduce(2)
    around = without_hidden(small.convert("RGB"), small.getchannel("A"))
    return Image.composite(rgb, around.resize(rgb.size, Image.Resampling.BILINEAR), visible)


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
