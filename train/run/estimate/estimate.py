"""`uhr train plan`: estimates a training run without loading weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError
from uhr.models.estimate.devices import Device, device
from uhr.models.estimate.shapes import spec_named
from uhr.models.families.registry import FAMILIES
from uhr.models.loading.model import empty_transformer
from uhr.models.zoo import Model, ModelName, ModelSpec, get
from uhr.train.data.mixture import Mixture, mixture_of
from uhr.train.data.names import NamedPath
from uhr.train.data.sets import NamedData, check_windows, open_sets
from uhr.train.encode.buckets import Bucket
from uhr.train.encode.stored.tensors import size_of
from uhr.train.recipes.core.base import Recipe, RecipeBase
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.run.checkpoints.average import describe_average
from uhr.train.run.estimate.cost import Cost
from uhr.train.run.estimate.counts import Counts, counts_of_spec, key_of
from uhr.train.run.estimate.duration import TokenCounts, sample_operations, step_seconds, token_counts
from uhr.train.run.estimate.fitting import settings
from uhr.train.run.estimate.memory import Processes, memory
from uhr.train.run.estimate.other_gpus import other_gpus
from uhr.train.run.estimate.stored import name_of

if TYPE_CHECKING:
    from uhr.train.run.estimate.vae import VaePlan


def estimate(
    recipe: RecipeBase,
    model: str | ModelName,
    data: Sequence[NamedPath | Path | str],
    on: str | None = None,
    processes: Processes | None = None,
    keep: Collection[str] = (),
    sizes: Sequence[Bucket] = (),
) -> dict[str, Any]:
    """Estimate steps, batches, tokens, parameters, memory, storage and time of a run, as plain values.

    model: a checkpoint, or the name of a published spec. on: the name of a GPU, to say whether the run fits
    and how long it takes. processes: those that share the run; None is one. keep: paths of the recipe that
    other settings leave as they are. sizes: without data, those of the images; otherwise squares of the
    recipe's resolution are planned. Sizes are in bytes. `samples` are counted where there are data
    (`samples_counted`); without, they are as many as there can be.
    """
    gpu, processes = None if on is None else device(on), processes or Processes()
    spec, opened = _model(ModelName.of(model))
    recipe.check(spec)
    shared = processes.accumulation(recipe)
    encoded = open_sets(recipe, data)
    if isinstance(recipe, Recipe) and recipe.windows is not None:
        check_windows(recipe, spec, encoded)
        recipe = recipe.model_copy(update={"windows": recipe.windows.for_model(spec)})
    phases = [_phase(recipe, index, spec, encoded, sizes) for index in range(len(recipe.phases))]
    common = {
        "recipe": recipe.name,
        "model": spec.name,
        "steps": recipe.steps,
        "average": None if recipe.ema is None else describe_average(recipe.ema, recipe.steps),
        "samples": sum(phase["samples"] for phase in phases),
        "samples_counted": bool(encoded),
        "batch": {**dataclasses.asdict(shared), "text": shared.describe()},
        "component": recipe.trainable.component,
        "phases": phases,
        "trained": recipe.trainable.describe(spec),
        "processes": {**dataclasses.asdict(processes), "parts": processes.parts(recipe)},
        "notes": [
            *recipe.notes(spec),
            *_first(recipe),
            *(recipe.missing() if isinstance(recipe, VaeRecipe) else ()),
        ],
    }
    planned = _plan(recipe, spec, opened, phases)
    cost = planned.cost(recipe, processes, gpu)
    found: dict[str, Any] = {
        "parameters": planned.parameters,
        "memory": dict(cost.memory),
        "storage": planned.storage,
    }
    if gpu is not None:
        found |= _on_gpu(planned, cost, processes, gpu, keep)
    if encoded:
        parts = (part for each in encoded for part in each.data.info.parts)
        found["storage"]["encoded_data"] = sum(part.bytes for part in parts)
    return {**common, **found}


def _plan(
    recipe: RecipeBase, spec: ModelSpec, opened: Model | None, phases: Sequence[Mapping[str, Any]]
) -> VaePlan | BackbonePlan:
    """The training of the component that the recipe trains."""
    if isinstance(recipe, VaeRecipe):
        from uhr.train.run.estimate.vae import VaePlan

        return VaePlan(recipe, spec, opened, phases)
    assert isinstance(recipe, Recipe)
    return BackbonePlan(recipe, spec, opened, phases)


def _on_gpu(
    planned: VaePlan | BackbonePlan, cost: Cost, processes: Processes, gpu: Device, keep: Collection[str]
) -> dict[str, Any]:
    """Whether the run fits a GPU, how long it takes there, and with which settings and GPUs it would fit."""
    recipe = planned.recipe

    def measure(changed: RecipeBase) -> tuple[Mapping[str, int], float]:
        priced = planned.cost(changed, processes, gpu)
        return priced.memory, priced.run(changed)

    fit = cost.fit(gpu)
    others = [] if fit["fits"] else other_gpus(recipe, planned.spec, processes, gpu, planned.cost)
    return {
        "gpu": fit,
        "time": {"steps": dict(cost.steps), "run": cost.run(recipe)},
        "settings": [dataclasses.asdict(each) for each in settings(recipe, measure, gpu, keep)],
        "other_gpus": [dataclasses.asdict(each) for each in others],
    }


def _first(recipe: RecipeBase) -> list[str]:
    """Which recipe has to be run before this one, if any."""
    before = recipe.init.after
    if before is None:
        return []
    what = f"recipe {recipe.name} begins with the result of {before}, which this plan does not count"
    fix = f"run that first, then `uhr train run {recipe.name} --init ITS_RUN`"
    return [f"{what}: {fix}; or begin with the model, --set init.after=null"]


class BackbonePlan:
    """The training of a backbone, of which nothing is loaded.

    phases: as the plan has them.
    """

    def __init__(
        self, recipe: Recipe, spec: ModelSpec, opened: Model | None, phases: Sequence[Mapping[str, Any]]
    ) -> None:
        self.recipe, self.spec, self._opened, self._phases = recipe, spec, opened, phases
        self._counted: dict[str, Counts] = {}

    def counts(self, recipe: Recipe) -> Counts:
        """The sizes for a recipe that may be quantised otherwise."""
        if self._opened is None:
            return counts_of_spec(recipe, self.spec)
        name = name_of(key_of(recipe, self.spec))
        if name not in self._counted:
            self._counted[name] = Counts.of(recipe, self.spec, empty_transformer(self._opened))
        return self._counted[name]

    def cost(self, recipe: RecipeBase, processes: Processes, gpu: Device | None) -> Cost:
        """Memory of one process, and the seconds of each phase's mean step if a GPU is named.

        recipe: that of the plan, of which `fitting` may have changed what saves memory.
        """
        assert isinstance(recipe, Recipe)
        counts = self.counts(recipe)
        longest = max(bucket["tokens"] for phase in self._phases for bucket in phase["buckets"])
        sizes = memory(recipe, counts.base, counts.part, longest, processes)
        timed = {} if gpu is None else _times(recipe, self.spec, gpu, counts, self._phases, processes)
        return Cost(sizes, timed)

    @property
    def parameters(self) -> dict[str, int]:
        counts = self.counts(self.recipe)
        return {
            "base": counts.base.parameters,
            "total": counts.total,
            "trainable": counts.part.trained,
            "linears": counts.linears,
        }

    @property
    def storage(self) -> dict[str, Any]:
        """Bytes on disk per image and caption (in bfloat16, the default of `encode`), and per checkpoint."""
        recipe, spec, counts = self.recipe, self.spec, self.counts(self.recipe)
        side = (recipe.phases[0].resolution or spec.native_size) // spec.vae_factor
        latents = 2 * size_of((spec.latent_channels, side, side), "bfloat16")
        each = 4 + recipe.optimiser.state_bytes() + (4 if recipe.ema is not None else 0)
        return {
            "latents_per_picture": latents,
            **({} if recipe.windows is None else {"guide_per_picture": latents // recipe.windows.ratio**2}),
            "text_per_caption": counts.caption,
            "checkpoint": round(counts.part.trained * each) + 4 * counts.part.constant,
        }


def _model(model: ModelName) -> tuple[ModelSpec, Model | None]:
    """The spec, and the checkpoint; None if the model is a published spec by name."""
    known = spec_named(model.model) if model.base is None else None
    if known is None:
        opened = model.open()
        return opened.spec, opened
    if model.spec is not None:
        known = get(model.spec)
    if known.tiny:
        fix = "`uhr models make-tiny DIR`, then name DIR as the model"
        raise UserError(f"'{known.name}' has no published weights", fix)
    return known, None


def _phase(
    recipe: RecipeBase,
    index: int,
    spec: ModelSpec,
    encoded: Sequence[NamedData],
    sizes: Sequence[Bucket],
) -> dict[str, Any]:
    phase = recipe.phases[index]
    # without data every batch is taken for full
    samples = phase.steps * recipe.batch.size
    if encoded:
        mixture = mixture_of(recipe, index, spec, encoded)
        samples = mixture.row_count(phase.steps)
        sets, buckets = _used(recipe, mixture, phase.steps, spec)
    else:
        sets, buckets = _planned(recipe, index, spec, sizes)
    alone = sets[0] if len(sets) == 1 else None
    return {
        "name": phase.name,
        "steps": phase.steps,
        "samples": samples,
        "resolution": phase.resolution or spec.native_size,
        "batches_per_epoch": alone and alone["batches_per_epoch"],
        "epochs": alone and alone["epochs"],
        "data": sets,
        "buckets": buckets,
    }


def _used(
    recipe: RecipeBase, mixture: Mixture, steps: int, spec: ModelSpec
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The data sets that a phase of so many steps mixes, and their buckets."""
    sets, buckets = [], []
    for order, share in zip(mixture.orders, mixture.shares, strict=True):
        per_epoch = order.plan.batches_per_epoch
        epochs = round(steps * share / per_epoch, 2)
        whole = {"name": order.use.data, "share": round(share, 4), "rows": order.row_count}
        sets.append({**whole, "batches_per_epoch": per_epoch, "epochs": epochs})
        for bucket, rows, batches in zip(
            order.buckets, order.rows, order.plan.batches_of_bucket, strict=True
        ):
            size = order.data.buckets[bucket]
            found = _bucket(recipe, spec, order.use.data, size.height, size.width)
            buckets.append({**found, "rows": len(rows), "batches_per_epoch": batches})
    return sets, buckets


def _planned(
    recipe: RecipeBase, index: int, spec: ModelSpec, sizes: Sequence[Bucket]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same without data: images of `sizes`, or squares of each data set's resolution, of unknown number.

    The share of a data set is known if the recipe weighs them, or has one.
    """
    phase, sets, buckets = recipe.phases[index], [], []
    weights = [1.0] if len(phase.data) == 1 else [use.weight or 0.0 for use in phase.data]
    for use, weight in zip(phase.data, weights, strict=True):
        side = use.resolution or phase.resolution or spec.native_size
        share = round(weight / sum(weights), 4) if weight else None
        sets.append(
            {"name": use.data, "share": share, "rows": None, "batches_per_epoch": None, "epochs": None}
        )
        for height, width in sizes or [(side, side)]:
            buckets.append(_bucket(recipe, spec, use.data, height, width))
    return sets, buckets


def _bucket(recipe: RecipeBase, spec: ModelSpec, name: str, height: int, width: int) -> dict[str, Any]:
    bucket = {"data": name, "size": f"{width}x{height}", "rows": None, "batches_per_epoch": None}
    if not isinstance(recipe, Recipe):
        return bucket
    found = _sequence(recipe, spec, height, width)
    return {
        **bucket,
        "image_tokens": found.image,
        "guide_tokens": found.guide,
        "tokens": found.tokens,
    }


def _sequence(recipe: Recipe, spec: ModelSpec, height: int, width: int) -> TokenCounts:
    """The tokens of an image of height x width px."""
    text = spec.text_lengths[FAMILIES[spec.family].sequence]
    return token_counts(recipe, height // spec.pixel_multiple, width // spec.pixel_multiple, text)


def _times(
    recipe: Recipe,
    spec: ModelSpec,
    gpu: Device,
    counts: Counts,
    phases: Sequence[Mapping[str, Any]],
    processes: Processes,
) -> dict[str, float]:
    """Seconds of each phase's mean step.

    Buckets count by their batches, and without data alike; data sets by their share, or alike.
    """
    state = round((8 + recipe.optimiser.state_bytes()) * counts.part.trained)
    if recipe.trainable.divisible:
        state //= processes.parts(recipe)
    samples = processes.samples(recipe)
    found = {}
    for phase, plan in zip(recipe.phases, phases, strict=True):
        total = weight = 0.0
        for use, each in zip(phase.data, plan["data"], strict=True):
            own = [bucket for bucket in plan["buckets"] if bucket["data"] == use.data]
            batches = [bucket["batches_per_epoch"] or 1 for bucket in own]
            for bucket, count in zip(own, batches, strict=True):
                width, height = map(int, bucket["size"].split("x"))
                tokens = _sequence(recipe, spec, height, width)
                objective = phase.objective_of(use)
                work = sample_operations(recipe, counts.cost, tokens, objective)
                share = (each["share"] or 1.0) * count / sum(batches)
                seconds = step_seconds(recipe, objective, work, gpu, samples, counts.base, state)
                total += share * seconds
                weight += share
        found[phase.name] = total / weight
    return found
