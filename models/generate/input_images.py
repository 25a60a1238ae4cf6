"""The image that a user gives as input: opened for a sampler, and its properties restored on the result.

Transparency (enlarged like the colours) and the ICC profile are kept apart and restored. The result is
upright, gray if the input was, and has 8 bits per channel (the upper eight of deeper ones). Metadata (EXIF,
XMP, IPTC, text) are not passed on, and a note says so. The decoder is the one of curation (`uhr.pixels`), so
both open the same files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from uhr.base.errors import UserError
from uhr.base.files import file_version
from uhr.models.ops.filters import bicubic
from uhr.models.ops.fitting import Fit
from uhr.models.ops.sizes import Size
from uhr.pixels.types import PixelFault

if TYPE_CHECKING:
    from PIL.Image import Image

    from uhr.pixels.colour import Restoration

CHUNK = "uhr"
"""The PNG text chunk that holds the record of an image, as JSON (`record.py`)."""

STAGE = "uhr-stage"
"""The PNG text chunk that marks a preview: it contains the stage's name."""


@dataclass(frozen=True)
class InputImage:
    """An opened image, upright.

    `rgb` is the input of a model: sRGB, 8 bits. `alpha` is None if every pixel is opaque. `restoration`
    converts a result to the colours of the file. `notes` go into the record. `sha256` and `version`
    (`uhr.base.files.file_version`) are of the decoded bytes, even if the file has changed since.
    """

    rgb: Image
    alpha: Image | None
    gray: bool
    restoration: Restoration
    notes: tuple[str, ...]
    sha256: str
    version: str

    @property
    def size(self) -> Size:
        """Height and width in px."""
        return self.rgb.height, self.rgb.width

    def padded(self, fit: Fit) -> torch.Tensor:
        """Return the input of a sampler: float32 [1, 3, *fit.padded], in [0, 1] except for overshoots."""
        return fit.pad(_tensor(self.rgb))

    def restore(self, generated: Image, fit: Fit) -> Image:
        """Cut a generated image (sRGB, `fit.made` px) to `fit.target` px, and restore the input's colours,
        profile and transparency."""
        import numpy as np
        from PIL import Image

        found = fit.cut(generated.convert("RGB"))
        assert found.size == fit.target[::-1], (generated.size, fit)
        if self.gray:
            found = found.convert("L").convert("RGB")
        found = Image.fromarray(self.restoration.apply(np.asarray(found)))
        if self.alpha is not None:
            found.putalpha(_image(bicubic(_tensor(self.alpha), *fit.target)))
        if self.restoration.profile is not None:
            found.info["icc_profile"] = self.restoration.profile
        return found


def open_image(path: Path | str) -> InputImage:
    """Open the first image of a file. Raises UserError if it is not an image, is damaged, is of a variant
    that is not decoded, or exceeds the decoder's limits."""
    from uhr.pixels.decode import read_bytes
    from uhr.pixels.editing import open_editable
    from uhr.pixels.files import stat_file

    path = Path(path)
    if not path.exists():
        raise UserError(f"image {path} does not exist", "name an image, or a folder of images")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not a regular file"
        raise UserError(f"image {path} is {what}", "name a single image")
    try:
        version = file_version(stat_file(path))
        data = read_bytes(path, version=version)
        found = open_editable(data)
    except PixelFault as fault:
        raise _error_of(path, fault) from None
    except MemoryError as error:
        raise UserError(f"image {path} does not fit into memory", "cut it into parts") from error
    rgb, alpha = _pil(found.rgb), None if found.alpha is None else _pil(found.alpha)
    if alpha is not None:
        rgb = without_hidden(rgb, alpha)
    notes = (*found.notes, *_metadata_note(data))
    return InputImage(
        rgb, alpha, found.gray, found.restoration, notes, hashlib.sha256(data).hexdigest(), version
    )


def _metadata_note(data: bytes) -> list[str]:
    """A note on metadata that the result will lack. Our own record does not count: the new one has the file's
    hash."""
    from uhr.pixels.headers import read_header
    from uhr.pixels.metadata import metadata_kinds

    kinds = metadata_kinds(data, read_header(data).format, (CHUNK.encode(), STAGE.encode()))
    return [f"its {' and '.join(kinds)} metadata are not passed on"] if kinds else []


def _error_of(path: Path, fault: PixelFault) -> UserError:
    from uhr.pixels.headers import FORMATS

    damaged = f"image {path} is damaged ({fault.message})", "open it in an editor and save it again"
    unknown = f"{path} is not an image that can be read ({fault.message})"
    what, fix = {
        "empty file": (unknown, f"known formats: {', '.join(FORMATS)}"),
        "not an image": (unknown, f"known formats: {', '.join(FORMATS)}"),
        "truncated": damaged,
        "corrupt": damaged,
        "too large": (f"image {path} is too large ({fault.message})", "cut it into parts, or shrink it"),
        "unreadable": (f"image {path}: {fault.message}", "check who may read it"),
        "unsupported": (
            f"image {path} is of an unsupported kind ({fault.message})",
            "convert it to a PNG of 8 or 16 bits per channel",
        ),
        "changed": (f"image {path}: {fault.message}", None),
    }[fault.kind]
    return UserError(what, fix)


def without_hidden(rgb: Image, alpha: Image) -> Image:
    """Replace the colours of fully transparent pixels by those of visible pixels around them.

    Hidden colours were never seen, and an enlargement would mix them into every edge. The surroundings come
    from smaller and smaller copies, down to one in which every pixel is visible.
    """
    from PIL import Image

    visible = alpha.point([0] + [255] * 255)
    if visible.getextrema() in ((0, 0), (255, 255)):
        return rgb
    both = rgb.copy()
    both.putalpha(visible)
    small = both.reduce(2)
    around = without_hidden(small.convert("RGB"), small.getchannel("A"))
    return Image.composite(rgb, around.resize(rgb.size, Image.Resampling.BILINEAR), visible)


def _tensor(image: Image) -> torch.Tensor:
    """float32 [1, C, h, w] in [0, 1]."""
    import numpy as np

    array = torch.from_numpy(np.array(image)).float() / 255
    return array[None, None] if array.ndim == 2 else array.movedim(-1, 0)[None]


def _image(values: torch.Tensor) -> Any:
    """[1, C, h, w] -> PIL, L or RGB, clipped to [0, 1]."""
    array = (values[0].clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    return _pil(array[..., 0] if array.shape[-1] == 1 else array)


def _pil(pixels: Any) -> Any:
    """uint8 [H, W] or [H, W, 3] -> PIL, L or RGB."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels))
