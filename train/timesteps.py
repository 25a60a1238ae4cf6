"""The distribution of sigma in training: a density on (0, 1), a static shift, a band, and a loss weight."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from uhr.base.config import Config

if TYPE_CHECKING:
    import torch

EDGE = 1e-3
"""Sigma is at least this in the weight `sigma_sqrt`, which diverges at 0."""


class Timesteps(Config):
    """The density of sigma in training, and its weight in the loss; sigma in [0, 1], 1 is noise.

    uniform: sigma ~ U(0, 1).
    logit_normal: logit(sigma) ~ N(mean, std^2) (Esser et al. 2403.03206, section 3.1). `mean` and `std` have
        no effect on other densities.
    mode: sigma = 1 - u - scale (cos^2(pi u / 2) - 1 + u), u ~ U(0, 1) (2403.03206, section 3.1). `scale` has
        no effect on other densities; 1.29 is their best.
    shift: applied after that: sigma <- shift sigma / (1 + (shift - 1) sigma) (2403.03206, section 5.3). 1
        changes nothing, larger values move sigma towards noise. It never depends on the image's size: the
        linear rule of FLUX's scheduler puts all mass on pure noise at 4K.
    band: only sigma in [low, high], with the density given that; None is all of [0, 1].
    weighting: factor of the loss of a sample. none: 1. sigma_sqrt: 1 / sigma^2. cosmap:
        2 / (pi (1 - 2 sigma + 2 sigma^2)). The names are those of diffusers'
        `compute_loss_weighting_for_sd3`.
    """

    density: Literal["uniform", "logit_normal", "mode"]
    mean: float = 0.0
    std: float = Field(1.0, gt=0)
    scale: float = Field(1.29, ge=-1, le=2 / (math.pi - 2))
    shift: float = Field(1.0, gt=0, le=100)
    band: tuple[float, float] | None = None
    weighting: Literal["none", "sigma_sqrt", "cosmap"] = "none"

    @model_validator(mode="after")
    def _band_has_mass(self) -> Timesteps:
        if self.band is None:
            return self
        low, high = self.band
        if not 0 <= low < high <= 1:
            raise ValueError(f"band [{low}, {high}] must be 0 <= low < high <= 1")
        start, stop = _range_of(self)
        if stop - start < 1e-6:
            raise ValueError(f"band [{low}, {high}] has less than a millionth of the density")
        return self

    @property
    def unused(self) -> list[str]:
        """The parameters that the density does not have."""
        of_density = {"logit_normal": ["mean", "std"], "mode": ["scale"]}
        return [name for density, names in of_density.items() if density != self.density for name in names]

    def with_band(self, band: tuple[float, float]) -> Timesteps:
        """The same with another band, checked."""
        return Timesteps.model_validate({**self.model_dump(), "band": band})

    def sigma(self, u: torch.Tensor) -> torch.Tensor:
        """The quantile function: maps u in (0, 1), of any shape, to sigma in [0, 1] of the same shape,
        float64.

        Uniform u gives samples of this distribution; evenly spaced u give its quantiles.
        """
        u = u.double()
        if self.band is None:
            return self._unbanded(u)
        start, stop = _range_of(self)
        return self._unbanded(start + (stop - start) * u).clamp(*self.band)

    def weight(self, sigma: torch.Tensor) -> torch.Tensor | None:
        """The factor of the loss at each sigma, of its shape; None is 1."""
        if self.weighting == "none":
            return None
        if self.weighting == "sigma_sqrt":
            return sigma.clamp(min=EDGE) ** -2
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma.square()))

    def _unbanded(self, u: torch.Tensor) -> torch.Tensor:
        import torch

        from uhr.models.ops.schedules import shift

        if self.density == "logit_normal":
            u = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        elif self.density == "mode":
            # 1 - u in the place of u, so that sigma rises with it
            u = u - self.scale * (torch.sin(math.pi / 2 * u).square() - u)
        return shift(u, self.shift)


@lru_cache
def _range_of(timesteps: Timesteps) -> tuple[float, float]:
    """The range of u whose sigma lies in the band. Recipes are read without torch, so it is not used here."""
    assert timesteps.band is not None
    low, high = timesteps.band
    return (_share_below(timesteps, low) if low > 0 else 0.0), (
        _share_below(timesteps, high) if high < 1 else 1.0
    )


def _share_below(timesteps: Timesteps, sigma: float) -> float:
    """The inverse of `Timesteps._unbanded` at a level in (0, 1)."""
    level = sigma / (timesteps.shift - (timesteps.shift - 1) * sigma)
    if timesteps.density == "logit_normal":
        return NormalDist(timesteps.mean, timesteps.std).cdf(math.log(level / (1 - level)))
    if timesteps.density == "uniform":
        return level
    # of the mode density by bisection: it rises
    low, high = 0.0, 1.0
    for _ in range(60):
        u = (low + high) / 2
        value = u - timesteps.scale * (math.sin(math.pi / 2 * u) ** 2 - u)
        low, high = (u, high) if value < level else (low, u)
    return (low + high) / 2
