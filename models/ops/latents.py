"""Latents: VAE scale and shift, packing, token grids and position ids.

Shapes: z [B, C, H, W] are latents on the VAE's grid (H = height px / VAE factor): "raw" for the VAE, "model"
for the backbone. tokens [B, N, 4C] are model latents packed by 2x2 patches, row by row, channel c*4 + dy*2 +
dx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from uhr.base.errors import UserError


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Pack z [B, C, H, W] into tokens [B, (H/2)(W/2), 4C]. H and W must be even."""
    batch, channels, height, width = latents.shape
    assert height % 2 == 0, f"{height} rows of latents are odd"
    assert width % 2 == 0, f"{width} columns of latents are odd"
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Unpack tokens [B, N, 4C] into z [B, C, H, W]; `height` and `width` are H and W, on the latent grid."""
    batch, count, channels = tokens.shape
    assert count * 4 == height * width, f"{count} tokens are not {height} x {width} latents"
    patches = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def image_ids(rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the position ids (0, row, column) of a token grid: float32 [rows * columns, 3].

    Half precision would not do: bfloat16 is exact only to 256, so neighbours in an 8K image share a position.
    """
    ids = torch.zeros(rows, columns, 3, dtype=torch.float32, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None, :]
    return ids.reshape(rows * columns, 3)


def text_ids(length: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the position ids of text tokens: float32 zeros [length, 3]."""
    return torch.zeros(length, 3, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class Normalisation:
    """The normalisation of latents: model = (raw - shift) * scale."""

    shift: float
    scale: float

    @classmethod
    def of(cls, vae_config: Mapping[str, Any]) -> Normalisation:
        """Read a VAE's configuration (`vae.config`, or its `config.json`). Raises UserError if a value is
        missing."""
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
    """FLUX.2's normalisation: model = (raw - mean) / std per channel of the 2x2 patches; both are [4C]."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, vae: Any) -> PatchNormalisation:
        """Read the BatchNorm statistics of an AutoencoderKLFlux2."""
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
    """Return the normalisation of a loaded VAE of any family. It applies to z [B, C, H, W], H and W even."""
    return PatchNormalisation.of(vae) if hasattr(vae, "bn") else Normalisation.of(vae.config)


def to_images(rgb: Any) -> torch.Tensor:
    """Convert uint8 [B, H, W, 3] (sRGB, an array or a tensor) to float32 [B, 3, H, W] in [-1, 1]."""
    pixels = torch.as_tensor(rgb)
    assert pixels.dtype == torch.uint8, pixels.dtype
    assert pixels.ndim == 4, tuple(pixels.shape)
    assert pixels.shape[-1] == 3, tuple(pixels.shape)
    return pixels.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0


def sample_moments(mean: torch.Tensor, std: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Sample the VAE's posterior: mean + std * noise, raw latents in float32. `noise` is standard normal."""
    return mean.float() + std.float() * noise.to(mean.device, torch.float32)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Convert float [B, 3, H, W] in [-1, 1], clipped, to uint8 [B, H, W, 3], rounded to the nearest level."""
    levels = (images.float() * 0.5 + 0.5).clamp(0, 1) * 255
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1)
