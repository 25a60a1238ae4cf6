"""The algebra of rectified flow, in one convention: sigma in [0, 1], 1 is noise, velocity = noise - data.

    x_sigma = (1 - sigma) data + sigma noise        data  = x - sigma v
    v       = noise - data                          noise = x + (1 - sigma) v

Papers that run time from noise (t = 0) to data (t = 1), RealUHR among them, have t = 1 - sigma and the
velocity's sign turned. `sigma` is a float or a tensor that broadcasts against x.
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
    """x at noise level sigma on the straight line between data (0) and noise (1)."""
    return (1 - sigma) * data + sigma * noise


def data_estimate(x: torch.Tensor, velocity: torch.Tensor, sigma: Level) -> torch.Tensor:
    """The data that x would reach if the velocity stayed as it is: x - sigma v."""
    return x - sigma * velocity


def euler_step(x: torch.Tensor, velocity: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
    """x + (sigma_next - sigma) v in float32; the step is negative, towards the data."""
    return x.float() + (sigma_next - sigma) * velocity.float()


def check_finite(x: torch.Tensor, what: str) -> None:
    """UserError where a value of x is none (NaN, infinite): an image of it would be black, or grey."""
    # the sum has none either, and takes no memory
    if not math.isfinite(x.sum(dtype=torch.float32).item()):
        fix = "take another dtype (bfloat16 or float32), and look at the weights, adapters and guidance"
        raise UserError(f"{what} are not finite numbers (NaN or infinite)", fix)


def _go_on() -> bool:
    return False


def euler(
    velocity: Velocity,
    x: torch.Tensor,
    sigmas: Sequence[float],
    after: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    stop: Callable[[], bool] = _go_on,
) -> torch.Tensor:
    """Integrate dx/dsigma = v from sigmas[0] to sigmas[-1], one call of `velocity` per step; float32.

    x:      latents at noise level sigmas[0], any shape
    sigmas: falling, steps + 1 of them, the last usually 0
    after:  `after(step, x)` after each step gives the latents to go on with
    stop:   asked before each step; True ends the path where it is

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
