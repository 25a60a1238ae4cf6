"""Conditional flow matching: predict the velocity from data to noise (Lipman et al. 2210.02747)."""

from __future__ import annotations

from uhr.models.flow import interpolate
from uhr.train.draws import Draws
from uhr.train.objectives.base import Batch, Loss, Velocity
from uhr.train.timesteps import Timesteps


class Flow:
    """E || v(x_sigma, sigma, c) - (e - x) ||^2 with x_sigma = (1 - sigma) x + sigma e, e ~ N(0, I).

    The mean over a sample's latents is its loss, in float32 whatever the model computes in; every sample
    counts the same.
    """

    def __init__(self, timesteps: Timesteps) -> None:
        self.timesteps = timesteps

    def __call__(self, model: Velocity, batch: Batch, draws: Draws) -> Loss:
        data = batch.latents.float()
        sigma = self.timesteps.sigma(draws.uniform("sigma")).to(data)
        noise = draws.normal("noise", data.shape[1:]).to(data)
        s = sigma.view(-1, 1, 1, 1)
        predicted = model(interpolate(data, noise, s), sigma, batch.prompts)
        error = predicted.float() - (noise - data)
        per_sample = error.square().mean(dim=(1, 2, 3))
        return Loss(per_sample, sigma)
