"""Conditional flow matching: predict the velocity from data to noise (Lipman et al. 2210.02747)."""

from __future__ import annotations

from uhr.train.objectives.base import Batch, Loss, Velocity, predict
from uhr.train.objectives.draws import Draws
from uhr.train.timesteps import Timesteps


class Flow:
    """E || v(x_sigma, sigma, c) - (e - x) ||^2 with x_sigma = (1 - sigma) x + sigma e, e ~ N(0, I).

    A sample's loss is the mean over its latents, in float32 whatever dtype the model uses; all samples have
    equal weight.
    """

    def __init__(self, timesteps: Timesteps) -> None:
        self.timesteps = timesteps

    def __call__(self, model: Velocity, batch: Batch, draws: Draws) -> Loss:
        prediction = predict(model, batch, draws, self.timesteps)
        return Loss(prediction.error.square().mean(dim=(1, 2, 3)), prediction.sigma)
