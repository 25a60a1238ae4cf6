"""What the metrics of artifacts share: checks, the gray image, and heat maps over images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from uhr.base.errors import UserError
from uhr.models.metrics.base import check_image

if TYPE_CHECKING:
    import numpy as np

CELL = 16
"""px of the image in a cell of a heat map."""


OVERLAY_SIDE = 2048
"""px of the longer side of an overlay, at most."""


@runtime_checkable
class Located(Protocol):
    """A metric of images that says where its values come from."""

    def heat(self, image: np.ndarray, index: int = 0) -> np.ndarray:
        """Return a heat map of an image, uint8 RGB [H, W, 3]: float32 in [0, 1], a number for each cell of
        `CELL` px, [H / 16, W / 16] rounded up. Raises UserError for an image that cannot be scored.
        """
        ...


def check_size(image: np.ndarray, index: int, name: str, smallest: int) -> None:
    """Raise UserError if the shorter side of an image is below `smallest` px."""
    height, width = check_image(image).shape[:2]
    if min(height, width) < smallest:
        what = f"image {index} has {width}x{height} px, and {name} needs {smallest} px on each side"
        raise UserError(what, "give larger images: they are not enlarged")


def blank(image: np.ndarray) -> np.ndarray:
    """Return an empty heat map of an image, float32 [H / 16, W / 16], rounded up."""
    import numpy as np

    return np.zeros([-(-side // CELL) for side in image.shape[:2]], np.float32)


def gray_of(image: np.ndarray) -> np.ndarray:
    """Return the luma of an image, uint8 [H, W]."""
    import cv2
    import numpy as np

    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return an image, dimmed and without its colours, with its heat map in yellow to red over it.

    Args:
        image: uint8 RGB [H, W, 3]; the result is reduced to `OVERLAY_SIDE` px.
        heat: of `Located.heat`.
    """
    import cv2
    import numpy as np

    height, width = image.shape[:2]
    cells = np.kron(heat, np.ones((CELL, CELL), np.float32))[:height, :width]
    scale = min(1.0, OVERLAY_SIDE / max(height, width))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    below = cv2.resize(gray_of(image), size, interpolation=cv2.INTER_AREA).astype(np.float32)[..., None]
    share = cv2.resize(cells, size, interpolation=cv2.INTER_AREA)[..., None]
    colour = np.concatenate([np.full_like(share, 255), 220 * (1 - share), np.zeros_like(share)], axis=2)
    # a weak place is visible too
    alpha = np.where(share > 0, 0.25 + 0.35 * share, 0)
    return np.clip(0.7 * below * (1 - alpha) + colour * alpha, 0, 255).astype(np.uint8)
