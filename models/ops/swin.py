"""Swin patchify (I-Max, HiFlow): on every other step the 2 x 2 packing grid is shifted by half a token.

The latents get a ring of one position before the backbone's call and lose it after, so that a border between
two tokens is inside one token at the next step. The official codes keep the ring until the next step crops
it; it is never used, so padding around the call alone gives the same path.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from uhr.models.ops.choices import Ring


def shifts(step: int) -> bool:
    """Whether the grid is shifted at a step: at even steps, beginning with step 0."""
    return step % 2 == 0


def pad(
    latents: torch.Tensor,
    sigma: float,
    ring: Ring,
    noise: Callable[[], torch.Tensor] | None = None,
    width: int = 1,
) -> torch.Tensor:
    """Pad latents [B, C, H, W] at noise level sigma to [B, C, H + 2 width, W + 2 width].

    `noise()` draws standard normal values of the padded shape; it may be None for a ring of zeros.
    """
    padded = F.pad(latents, (width, width, width, width))
    if ring is Ring.ZEROS:
        return padded
    assert noise is not None
    around = sigma * noise().to(latents)
    around[..., width:-width, width:-width] = latents
    return around


def crop(latents: torch.Tensor, width: int = 1) -> torch.Tensor:
    """Remove the ring: [B, C, H + 2 width, W + 2 width] -> [B, C, H, W]."""
    return latents[..., width:-width, width:-width]
