"""A job's VAE in memory, ready to be trained."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from uhr.models.loading.model import load_vae
from uhr.models.specs.spec import ModelSpec
from uhr.models.surgery.base import applied, compose, from_record
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.run.job import Job
from uhr.train.run.model import TrainedModel
from uhr.train.run.monitoring.held_out import HeldOutLosses
from uhr.train.run.monitoring.validation_images import FOLDER
from uhr.train.run.vae.autoencoder import Autoencoder
from uhr.train.run.vae.held_out import HeldOutImages, ReconstructionWriter


class VaeModel(TrainedModel):
    """The VAE of a model, of which the decoder, or all of it, is trained."""

    def __init__(self, job: Job, recipe: VaeRecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        # what is trained is float32; `Autoencoder` computes in the recipe's precision
        vae = load_vae(job.model, "float32", str(device))
        super().__init__(job, vae, prepare(vae, recipe, job.model.spec))

    @cached_property
    def _writer(self) -> ReconstructionWriter:
        job = self.job
        return ReconstructionWriter(job.out / FOLDER, self.recipe, job.model.spec, job.data, self.device)

    def write_images(self, step: int) -> None:
        self._writer.write(self.network, step)

    @cached_property
    def _held_out(self) -> HeldOutLosses:
        job = self.job

        def one(phase: int) -> HeldOutImages:
            return HeldOutImages(self.recipe, phase, job.model.spec, job.data, self.device)

        return HeldOutLosses(self.recipe, job.model.spec, one)

    def measure(self) -> dict[str, Any]:
        return self._held_out.measure(self.network)


def prepare(vae: Any, recipe: VaeRecipe, spec: ModelSpec) -> Autoencoder:
    """Make a loaded VAE, or one on the meta device, what the recipe trains."""
    named = from_record(recipe.surgeries, f"recipe {recipe.name}: surgeries")
    # a checkpoint whose VAE is F16 already is trained as it is
    compose(vae, [surgery for surgery in named if surgery not in applied(vae)])
    if recipe.runtime.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    recipe.trainable.prepare(vae, spec, recipe.seed)
    vae.train()
    trained = recipe.trainable.parameters(vae)
    dtype = getattr(torch, recipe.runtime.precision)
    return Autoencoder(vae, dtype, any(name.startswith("encoder.") for name in trained))
