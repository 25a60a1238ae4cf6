"""A phase of a running job: its data, order of batches and objective."""

from __future__ import annotations

import torch

from uhr.models.ops.latents import sample_moments
from uhr.train.data.order import BucketPlan
from uhr.train.data.reader import EncodedData, EncodedRows
from uhr.train.objectives.base import Batch, BatchCondition, Objective
from uhr.train.objectives.draws import Draws
from uhr.train.run.job import Job


class PhaseRun:
    """One phase of a job with its data opened."""

    def __init__(self, job: Job, phase: int, device: torch.device) -> None:
        config = job.recipe.phases[phase]
        self.index = phase
        self.data: EncodedData = job.data_of(phase)
        self.plan: BucketPlan = job.plan_of(phase)
        self.objective: Objective = config.objective
        self.timesteps = config.timesteps
        self.recipe = job.recipe
        self.device = device
        self._normalisation = self.data.info.geometry.normalisation
        self._null = {name: tensor.to(device) for name, tensor in self.data.empty_texts().items()}

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
        )


def _over(samples: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Reshape [B] to [B, 1, ...], to broadcast over a tensor of shape [B, ...]."""
    return samples.view(-1, *[1] * (tensor.ndim - 1))
