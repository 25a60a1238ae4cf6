"""Losses on the wavelet bands of the clean estimate: Diffusion-4K's, and UltraFlux's robust one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from uhr.train.objectives.base import Batch, Denoiser, Errors, Objective

if TYPE_CHECKING:
    import torch

    from uhr.train.objectives.draws import Draws

EDGE = 1e-3
"""Sigma is clamped to [EDGE, 1 - EDGE] in the weights, which diverge at 0 and 1."""


def residual(denoiser: Denoiser, batch: Batch) -> torch.Tensor:
    """Haar bands of the clean estimate minus those of the data, [B, 4C, h/2, w/2]; h and w must be even.

    The error of x_sigma - sigma v is -sigma times the velocity's error, and the transform is linear.
    """
    import torch

    from uhr.models.ops.filters import haar

    predicted = denoiser.velocity(batch.noisy, batch.sigma, batch.condition).float()
    return torch.cat(haar(batch.levels * (batch.target - predicted)), dim=1)


class Wavelet(Objective):
    """Diffusion-4K's wavelet loss: || W(x_sigma - sigma v) - W(x) ||^2, one level of Haar, as in its official
    `train_flux_4k_wavelet.py`.

    The transform is orthonormal, so this is sigma^2 times the squared error of the velocity: flow matching
    with another weight, without preference for any frequency. It is here for comparison.
    """

    kind: str = "wavelet"

    def __call__(self, denoiser: Denoiser, batch: Batch, draws: Draws) -> Errors:
        return Errors(residual(denoiser, batch).square())


class SnrHuberWavelet(Objective):
    """UltraFlux's SNR-aware Huber wavelet loss (its paper, CVPR 2026): omega(sigma) times the mean over the
    bands of rho_c(r) = c^2 (sqrt(1 + (r / c)^2) - 1).

    gamma: where the signal-to-noise ratio (1 - sigma)^2 / sigma^2 is cut off.
    beta: omega = sigma / (1 - sigma) * min(SNR, gamma)^beta; for 0.5 that is
        min(1, sqrt(gamma) sigma / (1 - sigma)), which breaks at 1 / (1 + sqrt(gamma)). Below 0.5 it diverges
        towards noise.
    alpha: c = c_min + (c_max - c_min) (min(SNR, gamma) / gamma)^alpha.

    The paper gives c_min and c_max and neither gamma, beta nor alpha, whose defaults are ours: gamma from
    min-SNR weighting (2303.09556), beta the smallest that stays finite. No code was published.
    """

    kind: str = "snr-huber-wavelet"
    gamma: float = Field(5.0, gt=0)
    beta: float = Field(0.5, ge=0)
    alpha: float = Field(0.5, ge=0, le=1)
    c_min: float = Field(0.2, gt=0)
    c_max: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> SnrHuberWavelet:
        if self.c_min > self.c_max:
            raise ValueError("c_min must not be more than c_max")
        return self

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """omega, of sigma's shape."""
        t = sigma.clamp(EDGE, 1 - EDGE)
        return t / (1 - t) * self._ratio(sigma) ** self.beta

    def threshold(self, sigma: torch.Tensor) -> torch.Tensor:
        """c, of sigma's shape: where the loss turns from square to absolute."""
        return self.c_min + (self.c_max - self.c_min) * (self._ratio(sigma) / self.gamma) ** self.alpha

    def __call__(self, denoiser: Denoiser, batch: Batch, draws: Draws) -> Errors:
        import torch

        c = self.threshold(batch.levels)
        square = (residual(denoiser, batch) / c).square()
        # sqrt(1 + x) - 1 without cancellation
        huber = c.square() * square / (torch.sqrt(1 + square) + 1)
        return Errors(huber, self.weight(batch.sigma), {"huber": huber.mean(dim=(1, 2, 3))})

    def _ratio(self, sigma: torch.Tensor) -> torch.Tensor:
        t = sigma.clamp(EDGE, 1 - EDGE)
        return ((1 - t) / t).square().clamp(max=self.gamma)
