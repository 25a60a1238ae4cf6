"""`uhr train plan`: estimates a training run without loading weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from uhr.base.console import say, table
from uhr.base.errors import UserError
from uhr.base.formatting import duration, gibibytes, human_bytes
from uhr.models.estimate.devices import Device, device
from uhr.models.estimate.shapes import empty_component, empty_components, spec_named
from uhr.models.families.registry import FAMILIES
from uhr.models.loading.model import empty_transformer
from uhr.models.zoo import Model, ModelName, ModelSpec, get
from uhr.train.data.mixture import mixture_of
from uhr.train.data.names import NamedPath
from uhr.train.data.sets import NamedData, check_windows, open_sets
from uhr.train.encode.buckets import Bucket
from uhr.train.encode.stored.tensors import size_of
from uhr.train.recipes.core.base import Recipe, RecipeBase
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.run.checkpoints.average import describe_average
from uhr.train.run.estimate.counts import Counts, counts_of_spec
from uhr.train.run.estimate.duration import TokenCounts, sample_operations, step_seconds, token_counts
from uhr.train.run.estimate.fitting import Setting, advice, settings
from uhr.train.run.estimate.memory import Processes, fit, memory


def estimate(
    recipe: RecipeBase,
    model: str | ModelName,
    data: Sequence[NamedPath | Path],
    on: str | None = None,
    processes: Processes | None = None,
    keep: Collection[str] = (),
    sizes: Sequence[Bucket] = (),
) -> dict[str, Any]:
    """Estimate steps, batches, tokens, parameters, memory, storage and time of a run, as plain values.

    model: a checkpoint, or the name of a published spec. on: the name of a GPU, to say whether the run fits
    and how long it takes. processes: those that share the run; None is one. keep: paths of the recipe that
    other settings leave as they are. sizes: without data, those of the images; otherwise squares of the
    recipe's resolution are planned. Sizes are in bytes.
    """
    gpu, processes = None if on is None else device(on), processes or Processes()
    spec, opened = _model(ModelName.of(model))
    recipe.check(spec)
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
        "samples": recipe.steps * recipe.batch.size,
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
    if isinstance(recipe, VaeRecipe):
        from uhr.train.run.estimate.vae import vae_plan

        found = vae_plan(recipe, spec, _empty_vae(spec, opened), phases, gpu, processes)
    else:
        assert isinstance(recipe, Recipe)
        found = _backbone_plan(recipe, spec, opened, phases, gpu, processes, keep)
    if encoded:
        parts = (part for each in encoded for part in each.data.info.parts)
        found["storage"]["encoded_data"] = sum(part.bytes for part in parts)
    return {**common, **found}


def _first(recipe: RecipeBase) -> list[str]:
    """Which recipe has to be run before this one, if any."""
    before = recipe.init.after
    if before is None:
        return []
    what = f"recipe {recipe.name} begins with the result of {before}, which this plan does not count"
    fix = f"run that first, then `uhr train run {recipe.name} --init ITS_RUN`"
    return [f"{what}: {fix}; or begin with the model, --set init.after=null"]


def _empty_vae(spec: ModelSpec, opened: Model | None) -> Any:
    """The VAE without its weights."""
    return empty_component(spec, "vae") if opened is None else empty_components(opened)["vae"]


def _backbone_plan(
    recipe: Recipe,
    spec: ModelSpec,
    opened: Model | None,
    phases: Sequence[dict[str, Any]],
    gpu: Device | None,
    processes: Processes,
    keep: Collection[str],
) -> dict[str, Any]:
    """Parameters, memory, time and storage of the training of a backbone."""
    longest = max(bucket["tokens"] for phase in phases for bucket in phase["buckets"])
    counts = _counts(recipe, spec, opened)
    sizes = memory(recipe, counts.base, counts.part, longest, processes)
    timed = {} if gpu is None else _times(recipe, spec, gpu, counts, phases, processes)
    others = [] if gpu is None else _settings(recipe, spec, opened, phases, gpu, processes, keep)
    return {
        "parameters": {
            "base": counts.base.parameters,
            "total": counts.total,
            "trainable": counts.part.trained,
            "linears": counts.linears,
        },
        "memory": sizes,
        **({} if gpu is None else {"gpu": fit(sizes, gpu), "time": timed}),
        **({} if gpu is None else {"settings": [dataclasses.asdict(each) for each in others]}),
        "storage": _storage(recipe, spec, counts),
    }


def _counts(recipe: Recipe, spec: ModelSpec, opened: Model | None) -> Counts:
    if opened is None:
        return counts_of_spec(recipe, spec)
    return Counts.of(recipe, spec, empty_transformer(opened))


def _settings(
    recipe: Recipe,
    spec: ModelSpec,
    opened: Model | None,
    phases: Sequence[Mapping[str, Any]],
    gpu: Device,
    processes: Processes,
    keep: Collection[str],
) -> list[Setting]:
    """The settings with which the run may be done, by `fitting.settings`."""
    longest = max(bucket["tokens"] for phase in phases for bucket in phase["buckets"])
    counted: dict[str | None, Counts] = {}

    def measure(changed: Recipe) -> tuple[dict[str, int], float]:
        kind = changed.runtime.quantize
        if kind not in counted:
            counted[kind] = _counts(changed, spec, opened)
        counts = counted[kind]
        sizes = memory(changed, counts.base, counts.part, longest, processes)
        return sizes, _times(changed, spec, gpu, counts, phases, processes)["run"]

    return settings(recipe, measure, gpu, keep)


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
    sets, buckets = _used(recipe, index, spec, encoded) if encoded else _planned(recipe, index, spec, sizes)
    alone = sets[0] if len(sets) == 1 else None
    return {
        "name": phase.name,
        "steps": phase.steps,
        "resolution": phase.resolution or spec.native_size,
        "batches_per_epoch": alone and alone["batches_per_epoch"],
        "epochs": alone and alone["epochs"],
        "data": sets,
        "buckets": buckets,
    }


def _used(
    recipe: RecipeBase, index: int, spec: ModelSpec, encoded: Sequence[NamedData]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The data sets that a phase mixes, and their buckets."""
    mixture, steps = mixture_of(recipe, index, spec, encoded), recipe.phases[index].steps
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
) -> dict[str, Any]:
    """Seconds of each phase's mean step, and of the run.

    Buckets count by their batches, and without data alike; data sets by their share, or alike.
    """
    state = round((8 + counts.part.state) * counts.part.trained)
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
    run = sum(phase.steps * found[phase.name] for phase in recipe.phases)
    return {"steps": found, "run": run}


def _storage(
    recipe: Recipe,
    spec: ModelSpec,
    counts: Counts,
) -> dict[str, Any]:
    """Bytes on disk per image and caption (in bfloat16, the default of `encode`), and per checkpoint."""
    resolution = recipe.phases[0].resolution or spec.native_size
    side = resolution // spec.vae_factor
    family = FAMILIES[spec.family]
    shapes = family.text_shapes(counts.config, spec.text_lengths[family.sequence])
    latents = 2 * size_of((spec.latent_channels, side, side), "bfloat16")
    storage: dict[str, Any] = {
        "latents_per_picture": latents,
        **({} if recipe.windows is None else {"guide_per_picture": latents // recipe.windows.ratio**2}),
        "text_per_caption": sum(size_of(shape, "bfloat16") for shape in shapes.values()),
        "checkpoint": round(
            counts.part.trained * (4 + counts.part.state + (4 if recipe.ema is not None else 0))
        )
        + 4 * counts.part.constant,
    }
    return storage


_STORED = {
    "latents_per_picture": "latents per image",
    "guide_per_picture": "its guide",
    "text_per_caption": "text per caption",
    "pixels_per_picture": "pixels per image",
    "encoded_data": "encoded data",
}
"""How people read the keys of the storage."""


_MEMORY = {"constant": "constant part of the adapter", "host": "on the host, not in the total"}
"""How people read those keys of the memory that do not explain themselves."""


_SETS = {
    "data": "name",
    "share of batches": "share",
    "images": "rows",
    "batches per epoch": "batches_per_epoch",
    "epochs": "epochs",
}

_BUCKETS = {
    "data": "data",
    "bucket": "size",
    "images": "rows",
    "batches per epoch": "batches_per_epoch",
    "image tokens": "image_tokens",
    "guide tokens": "guide_tokens",
    "tokens in all": "tokens",
}
"""The columns of the tables, and the values in them."""


def _known(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table without the columns that have no value in any row."""
    shown = {head: key for head, key in columns.items() if any(row.get(key) for row in rows)}
    table(list(shown), [[row[key] for key in shown.values()] for row in rows])


def print_estimate(plan: dict[str, Any]) -> None:
    """Print what `estimate` returns."""
    base, trainable = plan["parameters"]["base"], plan["parameters"]["trainable"]
    say(f"{plan['recipe']} on {plan['model']}: {plan['steps']:,} steps, {plan['samples']:,} samples")
    say(f"trained: {plan['trained']}")
    linears = plan["parameters"]["linears"]
    total = plan["parameters"]["total"]
    whole = {"transformer": "backbone", "vae": "VAE"}[plan["component"]]
    share = f"{trainable / base:.2%} of the {whole}" + (f", in {linears} linears" if linears else "")
    say(f"trainable {trainable:,} of {total:,} parameters ({share})")
    if plan["average"] is not None:
        say(f"averaged adapter: {plan['average']}")
    for phase in plan["phases"]:
        epochs = f", {phase['epochs']:g} epochs" if phase["epochs"] is not None else ""
        say(f"\nphase {phase['name']}: {phase['steps']:,} steps at {phase['resolution']} px{epochs}")
        if len(phase["data"]) > 1:
            _known(_SETS, phase["data"])
        _known(_BUCKETS, phase["buckets"])
    where = plan["processes"]
    each = f" of each of {where['workers']} processes" if where["workers"] > 1 else ""
    parts = f", weights divided by {where['parts']}" if where["parts"] > 1 else ""
    at = "at the longest sequence" if plan["component"] == "transformer" else "for the largest images"
    say(f"\nestimated memory{each} {at}{parts}:")
    # in the unit of the GPU's memory, with which the reader compares them
    table(
        ["what", "size"],
        [[_MEMORY.get(name, name), gibibytes(size)] for name, size in plan["memory"].items() if size],
    )
    if (gpu := plan.get("gpu")) is not None:
        state = "fits in" if gpu["fits"] else "does not fit in"
        say(f"{state} {gpu['title']}: {gibibytes(gpu['memory'])}, of which {gibibytes(gpu['usable'])} usable")
        timed = plan["time"]
        steps = ", ".join(f"{duration(seconds)} a step of {name}" for name, seconds in timed["steps"].items())
        say(f"time by its data sheet: {steps}; {duration(timed['run'])} in all")
        for line in advice(plan):
            say(line)
    say("\nstorage:")
    table(
        ["what", "size"],
        [[_STORED.get(name, name), human_bytes(size)] for name, size in plan["storage"].items()],
    )
    for note in plan["notes"]:
        say(f"\nnote: {note}")
