"""A phase of a running job: its data sets, the order of its batches, and what each is trained by."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from uhr.models.ops.latents import sample_moments
from uhr.train.data.mixture import Turn, UseOrder
from uhr.train.data.reader import EncodedRows
from uhr.train.objectives.base import Batch, BatchCondition, Denoiser
from uhr.train.objectives.draws import Draws
from uhr.train.run.job import Job


class PhaseRun:
    """One phase of a job with its data opened. `uses` are in the order of the recipe."""

    def __init__(self, job: Job, phase: int, device: torch.device) -> None:
        self.index = phase
        self.mixture = job.mixture_of(phase)
        self.uses = [UseRun(job, phase, order, device) for order in self.mixture.orders]


class UseRun:
    """One data set of a phase, and how its samples are trained."""

    def __init__(self, job: Job, phase: int, order: UseOrder, device: torch.device) -> None:
        config = job.recipe.phases[phase]
        self.data = order.data
        self.objective = config.objective_of(order.use)
        self.timesteps = config.timesteps_of(order.use)
        self.loss_weight = order.use.loss_weight
        self.recipe = job.recipe
        self.device = device
        self._normalisation = self.data.info.geometry.normalisation
        self._null = {name: tensor.to(device) for name, tensor in self.data.empty_texts().items()}

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
        raw = rows.mean.float()
        if self.recipe.latents == "sample":
            raw = sample_moments(raw, rows.std, draws.normal("latents", raw.shape[1:]))
        data = self._normalisation.to_model(raw).to(self.device)
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
            BatchCondition(texts, self._null, guidance),
            rows.sample_ids,
            None if rows.mask is None else rows.mask[:, None].to(self.device).float() / 255,
        )

    def loss(
        self, denoiser: Denoiser, batch: Batch, draws: Draws
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of each sample with all its weights, float32 [B], and its named parts, [B] each."""
        errors = self.objective(denoiser, batch, draws)
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
