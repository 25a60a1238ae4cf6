"""The named resize rules of distribution metrics, and the positions of crops.

A value is comparable only with values of the same rule, so the rule is part of each metric's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from uhr.base.errors import UserError

if TYPE_CHECKING:
    import numpy as np

SIDE = 299
"""px of an Inception network's input."""


def clean(image: np.ndarray) -> np.ndarray:
    """Resize to 299 x 299 as clean-fid does: Pillow's bicubic filter, which averages, on each channel in
    float32; not rounded, clipped to [0, 255]. Returns float32 [299, 299, 3].
    """
    import numpy as np
    from PIL import Image

    resized = np.empty((SIDE, SIDE, 3), dtype=np.float32)
    for channel in range(3):
        plane = Image.fromarray(np.ascontiguousarray(image[..., channel], dtype=np.float32))
        resized[..., channel] = np.asarray(plane.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return resized.clip(0, 255)


def bilinear(image: np.ndarray) -> np.ndarray:
    """Resize to 299 x 299 as torchmetrics does: torch's antialiased bilinear filter on float32, not
    rounded. Returns float32 [299, 299, 3].
    """
    import numpy as np
    import torch

    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(
        planes, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].permute(1, 2, 0).numpy()


def square(image: np.ndarray, side: int) -> np.ndarray:
    """Resize the shorter side to `side` and crop the centre, as Diffusion-4K's `generate_and_eval_fid.py`
    does before its FID: torchvision's antialiased bilinear filter for tensors, rounded. Returns uint8
    [side, side, 3].
    """
    import numpy as np
    import torch

    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter != side:
        # torchvision rounds the longer side down, and computes in float32
        longer = int(side * max(height, width) / shorter)
        size = (side, longer) if height == shorter else (longer, side)
        resized = torch.nn.functional.interpolate(planes.float(), size, mode="bilinear", antialias=True)
        planes = resized.round().to(torch.uint8)
    height, width = planes.shape[2:]
    # torchvision's centre crop rounds half to even
    top, left = round((height - side) / 2), round((width - side) / 2)
    return planes[0, :, top : top + side, left : left + side].permute(1, 2, 0).numpy()


Rule = Callable[["np.ndarray"], "np.ndarray"]

RULES: Mapping[str, Rule] = {"clean": clean, "bilinear": bilinear}
"""`diffusion-4k` is `square` and then `bilinear`: `rule` makes it for a side."""

NAMES = (*RULES, "diffusion-4k")


def rule(name: str, side: int | None) -> tuple[str, Rule]:
    """Return the full name of a rule of `NAMES` and the rule. Only `diffusion-4k` needs a side, in px."""
    if name != "diffusion-4k":
        if side is not None:
            raise UserError(f"resize rule '{name}' has no side, and side is {side}", "leave it out")
        return f"{name}-{SIDE}", RULES[name]
    if side is None:
        raise UserError(
            "resize rule 'diffusion-4k' needs the side of its squares", "give side=2048 or side=4096"
        )
    return f"{name}-{side}-{SIDE}", lambda image: bilinear(square(image, side))


def crops(image: np.ndarray, index: int, count: int, side: int, name: str) -> np.ndarray:
    """Return `count` crops of the image at its own size, uint8 [count, side, side, 3].

    Their positions are drawn with the image's number as the seed, as fractions of what the size leaves
    free: an image and its reference have the same positions if they have the same size, and the same
    relative ones if not.

    Raises UserError if the image is smaller than a crop: it is never enlarged.
    """
    import numpy as np

    height, width = image.shape[:2]
    if min(height, width) < side:
        what = f"image {index} has {width}x{height} px, and {name} takes crops of {side} px"
        raise UserError(what, "give larger images: they are not enlarged")
    fractions = np.random.default_rng(index).random((count, 2))
    tops = (fractions[:, 0] * (height - side + 1)).astype(int)
    lefts = (fractions[:, 1] * (width - side + 1)).astype(int)
    return np.stack(
        [image[top : top + side, left : left + side] for top, left in zip(tops, lefts, strict=True)]
    )
