"""Images to latents and back, through a VAE of any family."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from uhr.base.errors import UserError
from uhr.models.ops.latents import normalisation, to_images, to_uint8
from uhr.models.vae.f16 import vae_factor
from uhr.models.vae.tiled import compute_dtype, reporting

if TYPE_CHECKING:
    import numpy as np


def encode_moments(vae: Any, rgb: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the raw mean and standard deviation of the VAE's posterior: two float32 [B, C, H/8, W/8].

    `rgb` is uint8 [B, H, W, 3] (sRGB, an array or a tensor), H and W multiples of the VAE factor. The result
    is float32 on the VAE's device, whatever the VAE's dtype. Raises UserError if a value is not finite.
    """
    return moments(vae, to_images(torch.as_tensor(rgb).to(_device(vae))))


@torch.no_grad()
def moments(vae: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Do the same as `encode_moments` for images [B, 3, H, W] in [-1, 1]."""
    inputs = images.to(_device(vae), compute_dtype(vae))
    posterior = vae.encode(inputs).latent_dist
    mean, std = posterior.mean.float(), posterior.std.float()
    if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
        if not bool(torch.isfinite(inputs).all()) or compute_dtype(vae) == torch.float32:
            what = "the VAE's input or output contains values that are not finite"
            raise UserError(what, "check the options (guidance, scales) and the weights")
        raise UserError(f"the VAE overflows in {compute_dtype(vae)}", "load it in float32")
    return mean, std


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode model latents [B, C, H, W] to images, float32 [B, 3, 8H, 8W], nominally in [-1, 1]."""
    raw = normalisation(vae).to_raw(latents.float())
    return vae.decode(raw.to(_device(vae), compute_dtype(vae)), return_dict=False)[0].float()


def reconstruct(vae: Any, rgb: np.ndarray, report: Callable[[float], None] | None = None) -> np.ndarray:
    """Encode one image, uint8 [H, W, 3], to the mean of its latents and decode it: uint8 [H, W, 3].

    Any size: the image is continued by its mirror to multiples of the VAE's factor, and the result is cut.
    Apply `uhr.models.vae.tiled.ExactTiling` to the VAE first for images that do not fit into memory.

    report: called with the share that is done, in [0, 1]: encoding is counted as a third of it.

    Raises UserError as `encode_moments`.
    """
    import numpy as np

    height, width = rgb.shape[:2]
    # FLUX.2 normalises patches of 2 x 2 latents
    factor = vae_factor(vae) * 2
    borders = ((0, -height % factor), (0, -width % factor), (0, 0))
    report = report or (lambda share: None)
    with reporting(lambda share: report(share / 3)):
        mean, _ = encode_moments(vae, np.pad(rgb, borders, mode="symmetric")[None])
    with reporting(lambda share: report((1 + 2 * share) / 3)):
        images = decode(vae, normalisation(vae).to_model(mean))
    return to_uint8(images)[0, :height, :width].cpu().numpy()


def _device(vae: Any) -> torch.device:
    """Return the device that the VAE computes on; the `device` of an offloaded one is another until it
    runs."""
    from diffusers.utils.torch_utils import get_module_execution_device

    return get_module_execution_device(vae)
