"""Swin patchify (I-Max, HiFlow): on every other step the 2 x 2 packing grid lies half a token further.

The latents get a ring of one position before the backbone's call and lose it after, so that what was a border
between two tokens comes to lie inside one. The official codes carry the ring until the next step crops it
off; nothing of it is ever used, so that padding around the call alone is the same path.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from uhr.models.ops.choices import Ring


def shifts(step: int) -> bool:
    """Whether the grid is shifted at a step: at the even ones, beginning with the first."""
    return step % 2 == 0


def pad(
    latents: torch.Tensor,
    sigma: float,
    ring: Ring,
    noise: Callable[[], torch.Tensor] | None = None,
    width: int = 1,
) -> torch.Tensor:
    """[B, C, H, W] at noise level sigma -> [B, C, H + 2 width, W + 2 width].

    `noise()` draws standard normal values of the padded shape; zeros need none.
    """
    padded = F.pad(latents, (width, width, width, width))
    if ring is Ring.ZEROS:
        return padded
    assert noise is not None
    around = sigma * noise().to(latents)
    around[..., width:-width, width:-width] = latents
    return around


def crop(latents: torch.Tensor, width: int = 1) -> torch.Tensor:
    """[B, C, H + 2 width, W + 2 width] -> [B, C, H, W]: takes the ring off."""
    return latents[..., width:-width, width:-width]
