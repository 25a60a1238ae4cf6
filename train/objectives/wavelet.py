"""Losses on the wavelet bands of the clean estimate: Diffusion-4K's, and UltraFlux's robust one."""

from __future__ import annotations

import torch

from uhr.models.ops.filters import haar
from uhr.train.objectives.base import Batch, Loss, Prediction, Velocity, predict
from uhr.train.objectives.draws import Draws
from uhr.train.timesteps import Timesteps

EDGE = 1e-3
"""Sigma is clamped to [EDGE, 1 - EDGE] in the weights, which diverge at 0 and 1."""


def residual(prediction: Prediction) -> torch.Tensor:
    """Haar bands of the clean estimate minus those of the data, [B, 4C, h/2, w/2]; h and w must be even.

    The error of x_sigma - sigma v is -sigma times the velocity's error, and the transform is linear.
    """
    return torch.cat(haar(-prediction.levels * prediction.error), dim=1)


class Wavelet:
    """Diffusion-4K's wavelet loss: E || W(x_sigma - sigma v) - W(x) ||^2, one level of Haar, as in its
    official `train_flux_4k_wavelet.py`.

    The transform is orthonormal, so this is sigma^2 times the squared error of the velocity: flow matching
    with another weight, without preference for any frequency. It is here for comparison.
    """

    def __init__(self, timesteps: Timesteps) -> None:
        self.timesteps = timesteps

    def __call__(self, model: Velocity, batch: Batch, draws: Draws) -> Loss:
        prediction = predict(model, batch, draws, self.timesteps)
        return Loss(residual(prediction).square().mean(dim=(1, 2, 3)), prediction.sigma)


class SnrHuberWavelet:
    """UltraFlux's SNR-aware Huber wavelet loss (its paper, CVPR 2026): omega(sigma) times the mean over the
    bands of rho_c(r) = c^2 (sqrt(1 + (r / c)^2) - 1).

    gamma: where the signal-to-noise ratio (1 - sigma)^2 / sigma^2 is cut off
    beta:  omega = sigma / (1 - sigma) * min(SNR, gamma)^beta; for 0.5 that is
           min(1, sqrt(gamma) sigma / (1 - sigma)), which breaks at 1 / (1 + sqrt(gamma)). Below 0.5 it
           diverges towards noise
    alpha: c = c_min + (c_max - c_min) (min(SNR, gamma) / gamma)^alpha

    The paper gives c_min and c_max and neither gamma, beta nor alpha, whose defaults are ours: gamma from
    min-SNR weighting (2303.09556), beta the smallest that stays finite. No code was published.
    """

    def __init__(
        self,
        timesteps: Timesteps,
        gamma: float = 5.0,
        beta: float = 0.5,
        alpha: float = 0.5,
        c_min: float = 0.2,
        c_max: float = 1.0,
    ) -> None:
        self.timesteps = timesteps
        self.gamma, self.beta, self.alpha, self.c_min, self.c_max = gamma, beta, alpha, c_min, c_max

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """omega, of sigma's shape."""
        t = sigma.clamp(EDGE, 1 - EDGE)
        return t / (1 - t) * self._ratio(sigma) ** self.beta

    def threshold(self, sigma: torch.Tensor) -> torch.Tensor:
        """c, of sigma's shape: where the loss turns from square to absolute."""
        return self.c_min + (self.c_max - self.c_min) * (self._ratio(sigma) / self.gamma) ** self.alpha

    def __call__(self, model: Velocity, batch: Batch, draws: Draws) -> Loss:
        prediction = predict(model, batch, draws, self.timesteps)
        c = self.threshold(prediction.levels)
        square = (residual(prediction) / c).square()
        # sqrt(1 + x) - 1 without cancellation
        huber = (c.square() * square / (torch.sqrt(1 + square) + 1)).mean(dim=(1, 2, 3))
        return Loss(self.weight(prediction.sigma) * huber, prediction.sigma, {"huber": huber})

    def _ratio(self, sigma: torch.Tensor) -> torch.Tensor:
        t = sigma.clamp(EDGE, 1 - EDGE)
        return ((1 - t) / t).square().clamp(max=self.gamma)
