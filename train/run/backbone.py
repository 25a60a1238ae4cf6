"""A job's backbone in memory, ready to be trained."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch

from uhr.models.attention.call import AttentionCalls
from uhr.models.families.registry import FAMILIES
from uhr.models.loading.stream import check_device, stream_blocks
from uhr.models.surgery.base import compose, from_record
from uhr.models.zoo import load_component
from uhr.train.recipes.core.base import Recipe
from uhr.train.run import init
from uhr.train.run.denoiser import BackboneDenoiser
from uhr.train.run.job import Job
from uhr.train.run.model import TrainedModel
from uhr.train.run.monitoring.held_out import HeldOut, HeldOutLosses
from uhr.train.run.monitoring.validation_images import ValidationImageWriter
from uhr.train.run.processes.mesh import divides
from uhr.train.run.processes.parallel import Ranks
from uhr.train.run.processes.shard import divide_all

GRAPHS = 32
"""Most graphs of one kind of compiled block."""


class BackboneModel(TrainedModel):
    """The transformer of a model, with the adapter that is trained, or trained itself."""

    def __init__(self, job: Job, recipe: Recipe, ranks: Ranks, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        spec, part, runtime = job.model.spec, recipe.trainable, recipe.runtime
        named = from_record(recipe.surgeries, f"recipe {recipe.name}: surgeries")
        attention = recipe.attention(spec)
        calls = [] if attention is None else [AttentionCalls()]
        self._images = None
        if recipe.validation.images is not None and ranks.first:
            # before the transformer is loaded: text encoders need its memory
            self._images = ValidationImageWriter(
                job.out,
                recipe.validation.images,
                job.model,
                device,
                [*calls, *named],
                part.off if part.removable else None,
                starts_off=not any(ref.use == "continue" for ref in job.info.init),
            )
        if runtime.offload is not None:
            check_device(device)
        # weights that are divided go from the host to the device in parts
        on_host = runtime.offload is not None or divides(recipe)
        place = "cpu" if on_host else str(device)
        transformer = load_component(
            job.model, "transformer", runtime.precision, place, quantize=runtime.quantize
        )
        compose(transformer, [*calls, *named])
        init.fuse_into(transformer, job.info.init, job.out)
        frozen = copy.deepcopy(transformer).requires_grad_(False) if recipe.second_model else None
        if runtime.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        part.prepare(transformer, spec, recipe.seed)
        transformer.train()
        if runtime.compile:
            _compile_blocks(transformer, job)
        if runtime.offload is not None:
            stream_blocks(transformer, (spec.double_block, spec.single_block), device)
        family, dtype = FAMILIES[recipe.family], getattr(torch, runtime.precision)
        network = BackboneDenoiser(family, transformer, part, attention, frozen, dtype)
        super().__init__(job, transformer, network)
        if divides(recipe):
            divide_all(transformer, frozen, recipe, ranks, device)

    def write_images(self, step: int) -> None:
        if self._images is not None:
            self._images.write(self.module, step)

    @cached_property
    def _held_out(self) -> HeldOutLosses:
        job, recipe = self.job, self.recipe

        def one(phase: int) -> HeldOut:
            return HeldOut(recipe, phase, job.model.spec, job.data, self.device)

        return HeldOutLosses(recipe, job.model.spec, one)

    def measure(self) -> dict[str, Any]:
        return self._held_out.measure(self.network)


def _compile_blocks(transformer: Any, job: Job) -> None:
    """Compile each kind of block once for all sizes of the data; for a single size, for that size alone.

    A kind still has several graphs: with and without a gradient, for one sample and for more, with and
    without the adapter. Beyond torch's limit of 8 a block would run uncompiled, with a line in torch's log.
    """
    import torch._dynamo.config as dynamo

    sizes = {(bucket.height, bucket.width) for each in job.data for bucket in each.data.buckets}
    dynamo.recompile_limit = max(GRAPHS, dynamo.recompile_limit)  # ty: ignore[invalid-assignment]
    transformer.compile_repeated_blocks(dynamic=True if len(sizes) > 1 else None)
