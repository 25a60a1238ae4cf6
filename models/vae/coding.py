"""Images to latents and back, through a VAE of any family."""

from __future__ import annotations

from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.ops.latents import normalisation, to_images
from uhr.models.vae.tiled import compute_dtype


def encode_moments(vae: Any, rgb: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the VAE's posterior, raw: two float32 [B, C, H/8, W/8].

    `rgb` is uint8 [B, H, W, 3] (sRGB, an array or a tensor), H and W multiples of the VAE factor. Whatever
    dtype the VAE has, the result is float32 on its device; a value that is not finite is a UserError.
    """
    return moments(vae, to_images(torch.as_tensor(rgb).to(_device(vae))))


@torch.no_grad()
def moments(vae: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `encode_moments`, of images [B, 3, H, W] in [-1, 1]."""
    inputs = images.to(_device(vae), compute_dtype(vae))
    posterior = vae.encode(inputs).latent_dist
    mean, std = posterior.mean.float(), posterior.std.float()
    if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
        if not bool(torch.isfinite(inputs).all()) or compute_dtype(vae) == torch.float32:
            what = "the VAE is given, or makes, what is not finite"
            raise UserError(what, "look at the numbers given (guidance, scales), and at the weights")
        raise UserError(f"the VAE overflows in {compute_dtype(vae)}", "load it in float32")
    return mean, std


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Model latents [B, C, H, W] -> images, float32 [B, 3, 8H, 8W] nominally in [-1, 1]."""
    raw = normalisation(vae).to_raw(latents.float())
    return vae.decode(raw.to(_device(vae), compute_dtype(vae)), return_dict=False)[0].float()


def _device(vae: Any) -> torch.device:
    """Where the VAE computes: an offloaded one says another place, or none, until it is called."""
    from diffusers.utils.torch_utils import get_module_execution_device

    return get_module_execution_device(vae)
