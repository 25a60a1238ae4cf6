"""The interface of objectives: batch, model, prediction and loss.

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
    """Samples of one bucket, as the model's inputs.

    latents: float32 [B, C, h, w], normalised (shifted and scaled) data.
    texts: the text tensors of the family, by their names (`Backbone.text_tensors`); B is the first dimension.
    sample_ids: those of the manifest's rows, for error messages.
    """

    latents: torch.Tensor
    texts: Mapping[str, torch.Tensor]
    sample_ids: tuple[str, ...]

    def slice(self, start: int, stop: int) -> Batch:
        """The samples from `start` to `stop` (exclusive)."""
        texts = {name: tensor[start:stop] for name, tensor in self.texts.items()}
        return Batch(self.latents[start:stop], texts, self.sample_ids[start:stop])


class Velocity(Protocol):
    """The model as a function of unpacked latents; it handles guidance and packing itself."""

    def __call__(
        self, noisy: torch.Tensor, sigma: torch.Tensor, texts: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """noisy [B, C, h, w] at sigma [B] -> predicted velocity [B, C, h, w]."""
        ...


@dataclass(frozen=True)
class Loss:
    """The loss of one batch.

    per_sample: float32 [B]; its mean is minimised. sigma: [B], as drawn. parts: named terms, [B] each.
    """

    per_sample: torch.Tensor
    sigma: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """The model's prediction at one noise level per sample.

    error: float32 [B, C, h, w], predicted minus true velocity. sigma: [B], as drawn.
    """

    error: torch.Tensor
    sigma: torch.Tensor

    @property
    def levels(self) -> torch.Tensor:
        """Sigma [B, 1, 1, 1]."""
        return self.sigma.view(-1, 1, 1, 1)


def predict(model: Velocity, batch: Batch, draws: Draws, timesteps: Timesteps) -> Prediction:
    """Call the model at x_sigma = (1 - sigma) x + sigma e with e ~ N(0, I), whose true velocity is e - x."""
    data = batch.latents.float()
    sigma = timesteps.sigma(draws.uniform("sigma")).to(data)
    noise = draws.normal("noise", data.shape[1:]).to(data)
    predicted = model(interpolate(data, noise, sigma.view(-1, 1, 1, 1)), sigma, batch.texts)
    return Prediction(predicted.float() - (noise - data), sigma)


class Objective(Protocol):
    """A pure function: the same model, batch and draws give the same loss."""

    def __call__(self, model: Velocity, batch: Batch, draws: Draws) -> Loss: ...
