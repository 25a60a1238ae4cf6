"""Latents: the one place for VAE scale and shift, packing, token grids and position ids.

Shapes: z [B, C, H, W] are latents on the VAE's grid (H = height px / VAE factor), "raw" as the VAE gives and
takes them or "model" as the backbone sees them. tokens [B, N, 4C] are model latents packed by 2x2 patches,
row by row, channel c*4 + dy*2 + dx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.vae.tiled import compute_dtype


def pack(latents: torch.Tensor) -> torch.Tensor:
    """z [B, C, H, W] -> tokens [B, (H/2)(W/2), 4C]. H and W must be even: an odd row has no patch."""
    batch, channels, height, width = latents.shape
    assert height % 2 == 0, f"{height} rows of latents are odd"
    assert width % 2 == 0, f"{width} columns of latents are odd"
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """tokens [B, N, 4C] -> z [B, C, H, W]; `height` and `width` are H and W, on the latent grid."""
    batch, count, channels = tokens.shape
    assert count * 4 == height * width, f"{count} tokens are no {height} x {width} latents"
    patches = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def image_ids(rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Position ids (0, row, column) of a token grid: float32 [rows * columns, 3].

    Never half precision: bfloat16 is exact only to 256, so that neighbours of an 8K picture share a position.
    """
    ids = torch.zeros(rows, columns, 3, dtype=torch.float32, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None, :]
    return ids.reshape(rows * columns, 3)


def text_ids(length: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Position ids of the text tokens: float32 zeros [length, 3]."""
    return torch.zeros(length, 3, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Normalisation:
    """Between raw and model latents: model = (raw - shift) * scale."""

    shift: float
    scale: float

    @classmethod
    def of(cls, vae_config: Mapping[str, Any]) -> Normalisation:
        """From a VAE's configuration (`vae.config`, or its `config.json`); both values must be there."""
        shift, scale = vae_config.get("shift_factor"), vae_config.get("scaling_factor")
        if shift is None or scale is None:
            raise UserError(
                f"the VAE's configuration has shift_factor={shift} and scaling_factor={scale}",
                "both must be numbers: take the config.json that came with the weights",
            )
        return cls(float(shift), float(scale))

    def to_model(self, raw: torch.Tensor) -> torch.Tensor:
        return (raw - self.shift) * self.scale

    def to_raw(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / self.scale + self.shift


@dataclass(frozen=True)
class PatchNormalisation:
    """FLUX.2's: model = (raw - mean) / std per channel of the 2x2 patches; `mean` and `std` are [4C]."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, vae: Any) -> PatchNormalisation:
        """From the BatchNorm statistics of an AutoencoderKLFlux2."""
        variance = vae.bn.running_var.float()
        return cls(vae.bn.running_mean.float(), torch.sqrt(variance + vae.config.batch_norm_eps))

    def to_model(self, raw: torch.Tensor) -> torch.Tensor:
        return self._patchwise(raw, lambda tokens, mean, std: (tokens - mean) / std)

    def to_raw(self, latents: torch.Tensor) -> torch.Tensor:
        return self._patchwise(latents, lambda tokens, mean, std: tokens * std + mean)

    def _patchwise(self, z: torch.Tensor, change: Callable[..., torch.Tensor]) -> torch.Tensor:
        tokens = change(pack(z), self.mean.to(z.device), self.std.to(z.device))
        return unpack(tokens, *z.shape[-2:])


def normalisation(vae: Any) -> Normalisation | PatchNormalisation:
    """That of a loaded VAE, of any family. Both kinds work on z [B, C, H, W], H and W even."""
    return PatchNormalisation.of(vae) if hasattr(vae, "bn") else Normalisation.of(vae.config)


def to_pictures(rgb: Any) -> torch.Tensor:
    """uint8 [B, H, W, 3] (sRGB, an array or a tensor) -> float32 [B, 3, H, W] in [-1, 1]."""
    pixels = torch.as_tensor(rgb)
    assert pixels.dtype == torch.uint8, pixels.dtype
    assert pixels.ndim == 4, tuple(pixels.shape)
    assert pixels.shape[-1] == 3, tuple(pixels.shape)
    return pixels.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0


def encode_moments(vae: Any, rgb: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the VAE's posterior, raw: two float32 [B, C, H/8, W/8].

    `rgb` is uint8 [B, H, W, 3] (sRGB, an array or a tensor), H and W multiples of the VAE factor. Whatever
    dtype the VAE has, the result is float32 on its device; a value that is not finite is a UserError.
    """
    return moments(vae, to_pictures(torch.as_tensor(rgb).to(_device(vae))))


@torch.no_grad()
def moments(vae: Any, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `encode_moments`, of pictures [B, 3, H, W] in [-1, 1]."""
    inputs = pictures.to(_device(vae), compute_dtype(vae))
    posterior = vae.encode(inputs).latent_dist
    mean, std = posterior.mean.float(), posterior.std.float()
    if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
        if not bool(torch.isfinite(inputs).all()) or compute_dtype(vae) == torch.float32:
            what = "the VAE is given, or makes, what is not finite"
            raise UserError(what, "look at the numbers given (guidance, scales), and at the weights")
        raise UserError(f"the VAE overflows in {compute_dtype(vae)}", "load it in float32")
    return mean, std


def sample_moments(mean: torch.Tensor, std: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """One raw latent of the posterior: mean + std * noise, in float32; `noise` is standard normal of that
    shape."""
    return mean.float() + std.float() * noise.to(mean.device, torch.float32)


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Model latents [B, C, H, W] -> pictures, float32 [B, 3, 8H, 8W] nominally in [-1, 1]."""
    raw = normalisation(vae).to_raw(latents.float())
    return vae.decode(raw.to(_device(vae), compute_dtype(vae)), return_dict=False)[0].float()


def _device(vae: Any) -> torch.device:
    """Where the VAE computes: an offloaded one says another place, or none, until it is called."""
    from diffusers.utils.torch_utils import get_module_execution_device

    return get_module_execution_device(vae)


def to_uint8(pictures: torch.Tensor) -> torch.Tensor:
    """float [B, 3, H, W] in [-1, 1], clipped -> uint8 [B, H, W, 3], rounded to the nearest level."""
    levels = (pictures.float() * 0.5 + 0.5).clamp(0, 1) * 255
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1)
