"""A phase while it runs: what it reads, in which order, and what it minimises."""

from __future__ import annotations

import torch

from uhr.models.ops.latents import Normalisation, sample_moments
from uhr.models.zoo import PromptEmbeds
from uhr.train.data.order import BucketPlan
from uhr.train.data.reader import EncodedData, Rows
from uhr.train.objectives import objective_class
from uhr.train.objectives.base import Batch, Objective
from uhr.train.objectives.draws import Draws
from uhr.train.run.job import Job


class PhaseRun:
    """One phase of a job: its data, its order, its objective."""

    def __init__(self, job: Job, phase: int, device: torch.device) -> None:
        config = job.recipe.phases[phase]
        self.index = phase
        self.data: EncodedData = job.data_of(phase)
        self.plan: BucketPlan = job.plan_of(phase)
        self.objective: Objective = objective_class(config.objective)(config.timesteps)
        self.recipe = job.recipe
        self.device = device
        geometry = self.data.info.geometry
        self._normalisation = Normalisation(geometry.shift, geometry.scale)
        self._empty = self.data.empty_prompt()

    def batch(self, rows: Rows, draws: Draws) -> Batch:
        """Stored rows as the model sees them: a latent drawn, normalised; some captions emptied."""
        raw = rows.mean.float()
        if self.recipe.latents == "sample":
            raw = sample_moments(raw, rows.std, draws.normal("latents", raw.shape[1:]))
        dropped = draws.uniform("caption dropout") < self.recipe.caption_dropout
        t5 = torch.where(dropped[:, None, None], self._empty.t5, rows.prompts.t5)
        pooled = torch.where(dropped[:, None], self._empty.pooled, rows.prompts.pooled)
        prompts = PromptEmbeds(t5.to(self.device), pooled.to(self.device), (), ())
        return Batch(self._normalisation.to_model(raw).to(self.device), prompts, rows.sample_ids)
