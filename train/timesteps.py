"""The distribution of sigma in training: a density on (0, 1), then a static shift."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from uhr.base.config import Config

if TYPE_CHECKING:
    import torch


class Timesteps(Config):
    """The density of sigma in training; sigma in [0, 1], 1 is noise.

    uniform: sigma ~ U(0, 1).
    logit_normal: logit(sigma) ~ N(mean, std^2) (Esser et al. 2403.03206, section 3.1). `mean` and `std` have
        no effect on other densities.
    shift: applied after that: sigma <- shift sigma / (1 + (shift - 1) sigma) (2403.03206, section 5.3). 1
        changes nothing, larger values move sigma towards noise. It never depends on the image's size: the
        linear rule of FLUX's scheduler puts all mass on pure noise at 4K.
    """

    density: Literal["uniform", "logit_normal"]
    mean: float = 0.0
    std: float = Field(1.0, gt=0)
    shift: float = Field(1.0, gt=0, le=100)

    def sigma(self, u: torch.Tensor) -> torch.Tensor:
        """The quantile function: maps u in (0, 1), of any shape, to sigma in [0, 1] of the same shape,
        float64.

        Uniform u gives samples of this distribution; evenly spaced u give its quantiles.
        """
        import torch

        from uhr.models.ops.schedules import shift

        u = u.double()
        sigma = (
            u if self.density == "uniform" else torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        )
        return shift(sigma, self.shift)
