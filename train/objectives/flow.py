"""Conditional flow matching: predict the velocity from data to noise (Lipman et al. 2210.02747)."""

from __future__ import annotations

from uhr.train.objectives.base import Batch, Loss, Velocity, guess
from uhr.train.objectives.draws import Draws
from uhr.train.timesteps import Timesteps


class Flow:
    """E || v(x_sigma, sigma, c) - (e - x) ||^2 with x_sigma = (1 - sigma) x + sigma e, e ~ N(0, I).

    The mean over a sample's latents is its loss, in float32 whatever the model computes in; every sample
    counts the same.
    """

    def __init__(self, timesteps: Timesteps) -> None:
        self.timesteps = timesteps

    def __call__(self, model: Velocity, batch: Batch, draws: Draws) -> Loss:
        found = guess(model, batch, draws, self.timesteps)
        return Loss(found.error.square().mean(dim=(1, 2, 3)), found.sigma)
