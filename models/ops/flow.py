"""The algebra of rectified flow, in one convention: sigma in [0, 1], 1 is noise, velocity = noise - data.

    x_sigma = (1 - sigma) data + sigma noise        data  = x - sigma v
    v       = noise - data                          noise = x + (1 - sigma) v

Papers that run time from noise (t = 0) to data (t = 1), such as RealUHR, have t = 1 - sigma and the opposite
sign of the velocity. `sigma` is a float or a tensor that broadcasts against x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from uhr.base.errors import UserError

Level = float | torch.Tensor
Velocity = Callable[[torch.Tensor, float, int], torch.Tensor]
"""`velocity(x, sigma, step)`: noise - data at x, of x's shape."""


def interpolate(data: torch.Tensor, noise: torch.Tensor, sigma: Level) -> torch.Tensor:
    """Return x at noise level sigma on the straight line between data (0) and noise (1)."""
    return (1 - sigma) * data + sigma * noise


def data_estimate(x: torch.Tensor, velocity: torch.Tensor, sigma: Level) -> torch.Tensor:
    """Return the data that x reaches if the velocity stays constant: x - sigma v."""
    return x - sigma * velocity


def euler_step(x: torch.Tensor, velocity: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
    """Return x + (sigma_next - sigma) v in float32; the step is negative, towards the data."""
    return x.float() + (sigma_next - sigma) * velocity.float()


def check_finite(x: torch.Tensor, what: str) -> None:
    """Raise UserError if a value of x is NaN or infinite: the image would be black or grey."""
    # the sum is then not finite either, and takes no memory
    if not math.isfinite(x.sum(dtype=torch.float32).item()):
        fix = "take another dtype (bfloat16 or float32), and check the weights, adapters and guidance"
        raise UserError(f"{what} are not finite numbers (NaN or infinite)", fix)


def _never() -> bool:
    return False


def euler(
    velocity: Velocity,
    x: torch.Tensor,
    sigmas: Sequence[float],
    after: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    stop: Callable[[], bool] = _never,
) -> torch.Tensor:
    """Integrate dx/dsigma = v from sigmas[0] to sigmas[-1], one call of `velocity` per step; float32.

    x:      latents at noise level sigmas[0], any shape
    sigmas: falling, steps + 1 of them, the last usually 0
    after:  `after(step, x)` is called after each step and returns the latents to continue with
    stop:   is called before each step; True ends the integration

    With v = (x - x*) / sigma the path is a straight line: the result is x* for any grid that ends in 0.
    """
    x = x.float()
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        if stop():
            break
        x = euler_step(x, velocity(x, sigma, step), sigma, sigma_next)
        if after is not None:
            x = after(step, x)
    return x
