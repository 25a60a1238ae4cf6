"""A phase of a running job: its data sets, the order of its batches, and what each is trained by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from uhr.models.ops.latents import sample_moments
from uhr.train.data.mixture import Mixture, Turn, UseOrder
from uhr.train.data.reader import EncodedData, EncodedRows
from uhr.train.objectives.base import Batch, BatchCondition, Denoiser, Objective
from uhr.train.objectives.draws import Draws
from uhr.train.recipes.core.base import DataUse, Recipe, RecipeBase
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.run.vae.phase import PixelUse
from uhr.train.timesteps import Timesteps


class TrainingBatch(Protocol):
    """The samples of a batch, as the loop sees them."""

    @property
    def noise_levels(self) -> torch.Tensor | None:
        """Sigma of each sample, [B]; None where there is no noise."""
        ...

    @property
    def amount(self) -> tuple[str, float]:
        """The size of one sample with its unit, for rates in the log."""
        ...

    def slice(self, start: int, stop: int) -> TrainingBatch:
        """The samples from `start` to `stop` (exclusive)."""
        ...


class TrainingUse(Protocol):
    """One data set of a phase, as the loop sees it. `rows`, `batch` and `network` are those of its kind."""

    data: EncodedData

    def read(self, turn: Turn, draws: Draws) -> Any:
        """Read the rows of a batch."""
        ...

    def batch(self, rows: Any, draws: Draws) -> Any:
        """Make a batch from stored rows."""
        ...

    def loss(self, network: Any, batch: Any, draws: Draws) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of each sample with all its weights, float32 [B], and its named parts, [B] each."""
        ...


class PhaseRun:
    """One phase of a run with its data opened. `uses` are in the order of the recipe."""

    def __init__(self, recipe: RecipeBase, phase: int, mixture: Mixture, device: torch.device) -> None:
        self.index, self.mixture = phase, mixture
        self.uses: list[TrainingUse] = [_use(recipe, phase, order, device) for order in mixture.orders]


def _use(recipe: RecipeBase, phase: int, order: UseOrder, device: torch.device) -> TrainingUse:
    if isinstance(recipe, VaeRecipe):
        return PixelUse.of(recipe, phase, order, device)
    assert isinstance(recipe, Recipe)
    return UseRun.of(recipe, phase, order, device)


class UseRun:
    """One data set of a phase, and how its samples are trained.

    Args:
        recipe: how latents, captions and guidance become a batch.
        timesteps: noise levels of the samples. loss_weight: factor of their loss.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: EncodedData,
        objective: Objective,
        timesteps: Timesteps,
        loss_weight: float,
        device: torch.device,
    ) -> None:
        self.recipe, self.data, self.objective = recipe, data, objective
        self.timesteps, self.loss_weight, self.device = timesteps, loss_weight, device
        self._normalisation = data.info.geometry.normalisation
        self._null = {name: tensor.to(device) for name, tensor in data.empty_texts().items()}

    @classmethod
    def of(cls, recipe: Recipe, phase: int, order: UseOrder, device: torch.device) -> UseRun:
        """A data set of a phase as the recipe uses it."""
        config, use = recipe.phases[phase], order.use
        assert isinstance(use, DataUse)
        objective, timesteps = config.objective_of(use), config.timesteps_of(use)
        return cls(recipe, order.data, objective, timesteps, use.loss_weight, device)

    def read(self, turn: Turn, draws: Draws) -> EncodedRows:
        """Read the rows of a batch, each with one of its captions, drawn by the recipe's shares."""
        shares = self.recipe.captions
        if not shares:
            return self.data.read(turn.bucket, turn.rows)
        columns = self.data.info.config.captions
        weights = [shares.get(name, 0.0) for name in columns]
        available = self.data.caption_columns(turn.bucket, turn.rows)
        levels = draws.uniform("caption").tolist()
        chosen = [_drawn(own, weights, level) for own, level in zip(available, levels, strict=True)]
        return self.data.read(turn.bucket, turn.rows, chosen)

    def batch(self, rows: EncodedRows, draws: Draws) -> Batch:
        """Make a batch from stored rows: draw and normalise latents, drop some captions, draw noise and its
        level.
        """
        data = self._latents("latents", rows.mean, rows.std, draws)
        # only windowed attention reads a guide
        guide = None
        if rows.guide is not None and self.recipe.windows is not None:
            guide = self._latents("guide", *rows.guide, draws)
        dropped = (draws.uniform("caption dropout") < self.recipe.caption_dropout).to(self.device)
        texts = {
            name: torch.where(_over(dropped, stored), self._null[name], stored.to(self.device))
            for name, stored in rows.texts.items()
        }
        scale = self.recipe.guidance.scale
        guidance = None if scale is None else torch.full((len(data),), scale, device=self.device)
        return Batch(
            data,
            draws.normal("noise", data.shape[1:]).to(data),
            self.timesteps.sigma(draws.uniform("sigma")).to(data),
            BatchCondition(texts, self._null, guidance, guide),
            rows.sample_ids,
            None if rows.mask is None else rows.mask[:, None].to(self.device).float() / 255,
        )

    def _latents(self, stream: str, mean: torch.Tensor, std: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Model latents from stored moments, float32: drawn, or their mean, as the recipe says."""
        raw = mean.float()
        if self.recipe.latents == "sample":
            raw = sample_moments(raw, std, draws.normal(stream, raw.shape[1:]))
        return self._normalisation.to_model(raw).to(self.device)

    def loss(
        self, network: Denoiser, batch: Batch, draws: Draws
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of each sample with all its weights, float32 [B], and its named parts, [B] each."""
        errors = self.objective(network, batch, draws)
        loss = errors.per_sample(batch.mask) * self.loss_weight
        weight = self.timesteps.weight(batch.sigma)
        return loss if weight is None else loss * weight, dict(errors.parts)


def _drawn(available: Sequence[int], weights: Sequence[float], level: float) -> int | None:
    """The caption column at quantile `level` of those that a row has, by weight; None, the row's first, if
    it has none of positive weight.
    """
    total = sum(weights[column] for column in available)
    reached = 0.0
    for column in available:
        reached += weights[column]
        if weights[column] > 0 and level * total <= reached:
            return column
    return None


def _over(samples: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Reshape [B] to [B, 1, ...], to broadcast over a tensor of shape [B, ...]."""
    return samples.view(-1, *[1] * (tensor.ndim - 1))
