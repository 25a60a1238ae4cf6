"""A conditional flow in the plane whose velocity is known in closed form, and a network that learns it.

Data of class k, k = 0..K-1, are an even mixture of two normal distributions in the plane. With
x_sigma = (1 - sigma) x + sigma e the velocity E[e - x | x_sigma] is a weighted mean over the components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from uhr.train.objectives.base import Batch, BatchCondition

CLASSES = 4
SPREAD = 0.25
"""Standard deviation of each component."""

NULL = -1
"""The label of the unconditional field."""


class PlaneField:
    """The true velocity, noise - data, of every class and of the whole."""

    def __init__(self) -> None:
        angle = 2 * math.pi * torch.arange(CLASSES) / CLASSES
        centre = torch.stack([angle.cos(), angle.sin()], dim=1)
        aside = 0.35 * torch.stack([-angle.sin(), angle.cos()], dim=1)
        self.means = torch.stack([centre + aside, centre - aside], dim=1)

    def data(self, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw a point [N, 2] of each class [N]."""
        which = torch.randint(2, (len(labels),), generator=generator)
        return self.means[labels, which] + SPREAD * torch.randn(len(labels), 2, generator=generator)

    def velocity(self, noisy: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The velocity [N, 2] at noisy [N, 2] and sigma [N] in (0, 1], of class `labels` [N] or `NULL`."""
        keep, level = (1 - sigma).view(-1, 1, 1), sigma.view(-1, 1, 1)
        means = self.means.view(1, -1, 2)
        of_class = torch.arange(CLASSES).repeat_interleave(2)
        allowed = (labels[:, None] == of_class) | (labels[:, None] == NULL)
        variance = (keep * SPREAD) ** 2 + level**2
        away = noisy[:, None] - keep * means
        weight = (
            (-away.square().sum(-1) / (2 * variance[..., 0])).masked_fill(~allowed, -math.inf).softmax(-1)
        )
        data = (weight[..., None] * (means + keep * SPREAD**2 / variance * away)).sum(1)
        noise = (noisy - (1 - sigma)[:, None] * data) / sigma[:, None]
        return noise - data

    def guided(
        self, noisy: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor, guidance: torch.Tensor
    ) -> torch.Tensor:
        """What a guidance-distilled model computes for the guidance input w: w v(c) - (w - 1) v(null)."""
        w = guidance[:, None]
        null = self.velocity(noisy, sigma, torch.full_like(labels, NULL))
        return w * self.velocity(noisy, sigma, labels) - (w - 1) * null


@dataclass(frozen=True)
class Points:
    """N draws: classes, data, noise, noise levels."""

    labels: torch.Tensor
    data: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor

    @classmethod
    def draw(cls, field: PlaneField, count: int, generator: torch.Generator) -> Points:
        labels = torch.randint(CLASSES, (count,), generator=generator)
        sigma = 0.01 + 0.98 * torch.rand(count, generator=generator)
        noise = torch.randn(count, 2, generator=generator)
        return cls(labels, field.data(labels, generator), noise, sigma)

    @property
    def noisy(self) -> torch.Tensor:
        sigma = self.sigma[:, None]
        return (1 - sigma) * self.data + sigma * self.noise

    def batch(self, guidance: float) -> Batch:
        """The same as objectives take them: points are latents [N, 2, 1, 1], classes the text tensor."""
        condition = BatchCondition(
            {"class": one_hot(self.labels)},
            {"class": torch.zeros(1, CLASSES)},
            torch.full((len(self.labels),), guidance),
        )
        shape = (len(self.labels), 2, 1, 1)
        return Batch(self.data.view(shape), self.noise.view(shape), self.sigma, condition, ())


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    """Classes as float32 [N, K]; `NULL` is a row of zeros."""
    return (labels[:, None] == torch.arange(CLASSES)).float()


class PlaneNetwork(torch.nn.Module):
    """A residual network of (noisy, sigma, class, guidance) -> velocity, all [N, ...]."""

    def __init__(self, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.point = torch.nn.Linear(2 + 16, width)
        self.label = torch.nn.Linear(CLASSES, width)
        self.guidance = torch.nn.Linear(8, width)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
        self.out = torch.nn.Linear(width, 2)

    def forward(
        self, noisy: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor, guidance: torch.Tensor
    ) -> torch.Tensor:
        silu = torch.nn.functional.silu
        level = sigma[:, None] * torch.exp(0.6 * torch.arange(8))
        w = guidance[:, None] / 4
        turns = w * torch.arange(1, 4)
        scale = torch.cat([w, w.square(), turns.sin(), turns.cos()], dim=1)
        hidden = self.point(torch.cat([noisy, level.sin(), level.cos()], dim=1))
        hidden = hidden + self.label(label) + self.guidance(scale)
        for block in self.blocks:
            hidden = hidden + block(silu(hidden))
        return self.out(silu(hidden))


class PlaneDenoiser:
    """A network as objectives see it, and the one before training as its teacher."""

    def __init__(self, network: PlaneNetwork, teacher: PlaneNetwork | None = None) -> None:
        self.network, self._teacher = network, teacher

    def velocity(self, noisy: torch.Tensor, sigma: torch.Tensor, condition: BatchCondition) -> torch.Tensor:
        return _called(self.network, noisy, sigma, condition)

    @torch.no_grad()
    def teacher(self, noisy: torch.Tensor, sigma: torch.Tensor, condition: BatchCondition) -> torch.Tensor:
        assert self._teacher is not None
        return _called(self._teacher, noisy, sigma, condition)


def _called(
    network: PlaneNetwork, noisy: torch.Tensor, sigma: torch.Tensor, condition: BatchCondition
) -> torch.Tensor:
    assert condition.guidance is not None
    found = network(noisy.flatten(1), sigma, condition.texts["class"], condition.guidance)
    return found.view_as(noisy)
