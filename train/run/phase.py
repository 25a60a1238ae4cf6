"""A phase of a running job: its data, order of batches and objective."""

from __future__ import annotations

import torch

from uhr.models.ops.latents import sample_moments
from uhr.train.data.order import BucketPlan
from uhr.train.data.reader import EncodedData, EncodedRows
from uhr.train.objectives import objective_class
from uhr.train.objectives.base import Batch, Objective
from uhr.train.objectives.draws import Draws
from uhr.train.run.job import Job


class PhaseRun:
    """One phase of a job with its data opened."""

    def __init__(self, job: Job, phase: int, device: torch.device) -> None:
        config = job.recipe.phases[phase]
        self.index = phase
        self.data: EncodedData = job.data_of(phase)
        self.plan: BucketPlan = job.plan_of(phase)
        self.objective: Objective = objective_class(config.objective)(config.timesteps)
        self.recipe = job.recipe
        self.device = device
        self._normalisation = self.data.info.geometry.normalisation
        self._empty = self.data.empty_texts()

    def batch(self, rows: EncodedRows, draws: Draws) -> Batch:
        """Make the model's inputs from stored rows: draw and normalise latents, drop some captions."""
        raw = rows.mean.float()
        if self.recipe.latents == "sample":
            raw = sample_moments(raw, rows.std, draws.normal("latents", raw.shape[1:]))
        dropped = draws.uniform("caption dropout") < self.recipe.caption_dropout
        texts = {
            name: torch.where(_over(dropped, stored), self._empty[name], stored).to(self.device)
            for name, stored in rows.texts.items()
        }
        return Batch(self._normalisation.to_model(raw).to(self.device), texts, rows.sample_ids)


def _over(samples: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Reshape [B] to [B, 1, ...], to broadcast over a tensor of shape [B, ...]."""
    return samples.view(-1, *[1] * (tensor.ndim - 1))
