"""What an objective is given and what it answers.

Shapes: B samples, C latent channels, h x w latent pixels.
Convention: sigma in [0, 1], 1 is noise; velocity = noise - data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from uhr.models.ops.flow import interpolate
from uhr.train.objectives.draws import Draws
from uhr.train.timesteps import Timesteps


@dataclass(frozen=True)
class Batch:
    """Samples of one bucket as the model sees them.

    latents: float32 [B, C, h, w], normalised (shifted and scaled) data.
    texts: the text tensors of the family, by their names (`Backbone.text_tensors`); B is the first dimension.
    sample_ids: of the manifest's rows, for error messages.
    """

    latents: torch.Tensor
    texts: Mapping[str, torch.Tensor]
    sample_ids: tuple[str, ...]

    def of(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop` (exclusive) of these."""
        texts = {name: tensor[start:stop] for name, tensor in self.texts.items()}
        return Batch(self.latents[start:stop], texts, self.sample_ids[start:stop])


class Velocity(Protocol):
    """The model as a function of unpacked latents; guidance and packing are its own affair."""

    def __call__(
        self, noisy: torch.Tensor, sigma: torch.Tensor, texts: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """noisy [B, C, h, w] at sigma [B] -> predicted velocity [B, C, h, w]."""
        ...


@dataclass(frozen=True)
class Loss:
    """What one batch costs.

    per_sample: float32 [B], what is minimised (its mean). sigma: [B], as drawn. parts: named terms, [B] each.
    """

    per_sample: torch.Tensor
    sigma: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Guess:
    """The model's velocity at one noise level of each sample: `error` [B, C, h, w] is it less the true one,
    float32; sigma [B], as drawn."""

    error: torch.Tensor
    sigma: torch.Tensor

    @property
    def levels(self) -> torch.Tensor:
        """Sigma [B, 1, 1, 1]."""
        return self.sigma.view(-1, 1, 1, 1)


def guess(model: Velocity, batch: Batch, draws: Draws, timesteps: Timesteps) -> Guess:
    """Show the model x_sigma = (1 - sigma) x + sigma e, e ~ N(0, I), whose velocity is e - x."""
    data = batch.latents.float()
    sigma = timesteps.sigma(draws.uniform("sigma")).to(data)
    noise = draws.normal("noise", data.shape[1:]).to(data)
    predicted = model(interpolate(data, noise, sigma.view(-1, 1, 1, 1)), sigma, batch.texts)
    return Guess(predicted.float() - (noise - data), sigma)


class Objective(Protocol):
    """Pure: the same model, batch and draws give the same loss; knows no device, log or loop."""

    def __call__(self, model: Velocity, batch: Batch, draws: Draws) -> Loss: ...
