"""Projected flow (I-Max): the low frequencies of a velocity are moved towards a reference image.

Pure functions on latents [..., H, W]; sigma in [0, 1] with 1 noise, velocity = noise - data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from uhr.models.ops.choices import Projection
from uhr.models.ops.filters import haar_low_pass


def velocity_towards(x: torch.Tensor, data: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the velocity of the straight line from x, at noise level sigma, to `data`: (x - data) / sigma.

    The official codes add 1e-6 to sigma; no step starts at 0, so nothing is added here.
    """
    assert sigma > 0, sigma
    return (x - data) / sigma


def cosine_weight(step: int, steps: int) -> float:
    """Return (1 + cos(pi step / steps)) / 2: 1 at the first step, falling to 0 just after the last."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def project(
    velocity: torch.Tensor,
    towards: torch.Tensor,
    weight: float,
    kind: Projection = Projection.COSINE_DECAY,
    low_pass: Callable[[torch.Tensor], torch.Tensor] = haar_low_pass,
) -> torch.Tensor:
    """Move the low band of `velocity` to that of `towards` (`velocity_towards` of the reference).

    I-Max: v + f (LP(v_ref) - LP(v)); `weight` is f, and LP the projection onto the low Haar band.
    """
    away = towards - velocity
    if kind is Projection.COSINE_DECAY:
        return velocity + weight * low_pass(away)
    if kind is Projection.COSINE_SHIFT:
        return velocity + weight * away + (1 - weight) * low_pass(away)
    assert kind is Projection.CONSTANT, kind
    return velocity + low_pass(away)
