"""Input images of a call: converted from every form that diffusers takes, and checked against its size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from uhr.base.errors import UserError
from uhr.models.ops.sizes import Size


def pixels(image: Any) -> torch.Tensor:
    """Convert an image, or several of one size, to float32 [B, 3, H, W] in [-1, 1].

    Takes what diffusers' pipelines take: PIL images, arrays [(B,) H, W, 3] and tensors [(B,) 3, H, W],
    uint8 or float in [0, 1], or lists of them. Raises UserError for other values, and for an image with
    transparency, which only the command keeps (`generate/input_images.py`).
    """
    if isinstance(image, (list, tuple)):
        parts = [pixels(part) for part in image]
        if not parts:
            raise UserError("the list of images is empty", "give one or more")
        if len({part.shape[-2:] for part in parts}) != 1:
            raise UserError("the images of a batch differ in size", "give images of one size")
        return torch.cat(parts)
    if isinstance(image, torch.Tensor):
        found = image
    else:
        array = np.asarray(image if isinstance(image, np.ndarray) else _opaque(image))
        found = torch.from_numpy(array.copy())
        found = found.movedim(-1, -3) if found.ndim > 2 else found
    if found.dtype == torch.uint8:
        found = found.float() / 255
    if not found.dtype.is_floating_point:
        raise UserError(f"an image has dtype {found.dtype}", "give 8 bits per value, or floats in [0, 1]")
    found = found.float() if found.ndim == 4 else found.float()[None]
    if found.ndim != 4 or found.shape[1] != 3:
        what = f"an image has shape {tuple(found.shape)}"
        raise UserError(what, "give RGB: [3, H, W] tensors, [H, W, 3] arrays")
    return found * 2 - 1


def _opaque(image: Any) -> Any:
    """A PIL image as RGB."""
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        what = f"an image of mode {image.mode} has transparency, which a pipeline would drop"
        raise UserError(what, 'flatten it: .convert("RGB"); `uhr sample SAMPLER --image` keeps it')
    return image.convert("RGB")


def check_aspect(image: Size, target: Size, multiple: int) -> None:
    """Raise UserError, with a size that fits, if `target` would stretch the image by more than rounding to
    the token grid does."""
    tall, wide = image
    height, width = target
    if abs(width - height * wide / tall) <= multiple or abs(height - width * tall / wide) <= multiple:
        return
    scale = math.sqrt(height * width / (tall * wide))
    fit = "x".join(str(max(1, round(side * scale / multiple)) * multiple) for side in (wide, tall))
    raise UserError(f"an image of {wide}x{tall} does not fit {width}x{height}", f"crop it, or use {fit}")
