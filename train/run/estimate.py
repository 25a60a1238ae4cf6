"""`uhr train plan`: estimates a training run without loading weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uhr.base.console import say, table
from uhr.base.errors import UserError
from uhr.base.formatting import gibibytes, human_bytes
from uhr.models.estimate.devices import device
from uhr.models.estimate.shapes import empty_component, spec_named
from uhr.models.families.registry import FAMILIES
from uhr.models.loading.model import empty_transformer
from uhr.models.zoo import ModelName, ModelSpec, get
from uhr.train.data.mixture import mixture_of
from uhr.train.data.names import NamedPath
from uhr.train.data.sets import NamedData, check_windows, open_sets
from uhr.train.encode.tensors import size_of
from uhr.train.recipes.base import Recipe
from uhr.train.run.average import describe_average
from uhr.train.run.memory import BaseSizes, fit, memory


def estimate(
    recipe: Recipe, model: str | ModelName, data: Sequence[NamedPath | Path], on: str | None = None
) -> dict[str, Any]:
    """Estimate steps, batches, tokens, parameters, memory and storage of a run, as plain values.

    model: a checkpoint, or the name of a published spec. on: the name of a GPU, to say whether the run fits.
    Sizes are in bytes.
    """
    gpu = None if on is None else device(on)
    spec, transformer = _backbone(ModelName.of(model))
    recipe.check(spec)
    encoded = open_sets(recipe, data)
    check_windows(recipe, spec, encoded)
    phases = [_phase(recipe, index, spec, encoded) for index in range(len(recipe.phases))]
    base = BaseSizes.of(recipe, spec, transformer)
    parameters = _parameters(recipe, spec, transformer)
    longest = max(bucket["tokens"] for phase in phases for bucket in phase["buckets"])
    trained = parameters["trainable"]
    # an adapter's weights are no weights of the backbone
    inside = trained - (parameters["total"] - parameters["base"])
    sizes = memory(recipe, base, trained, inside, parameters["constant"], longest)
    return {
        "recipe": recipe.name,
        "model": spec.name,
        "steps": recipe.steps,
        "average": None if recipe.ema is None else describe_average(recipe.ema, recipe.steps),
        "samples": recipe.steps * recipe.batch.size,
        "phases": phases,
        "trained": recipe.trainable.describe(spec),
        "parameters": {name: parameters[name] for name in ("base", "total", "trainable", "linears")},
        "memory": sizes,
        **({} if gpu is None else {"gpu": fit(sizes, gpu)}),
        "storage": _storage(recipe, spec, transformer.config, parameters, encoded),
    }


def _backbone(model: ModelName) -> tuple[ModelSpec, Any]:
    """The spec, and the transformer without its weights."""
    known = spec_named(model.model) if model.base is None else None
    if known is None:
        opened = model.open()
        return opened.spec, empty_transformer(opened)
    if model.spec is not None:
        known = get(model.spec)
    if known.tiny:
        fix = "`uhr models make-tiny DIR`, then name DIR as the model"
        raise UserError(f"'{known.name}' has no published weights", fix)
    return known, empty_component(known, "transformer")


def _parameters(recipe: Recipe, spec: ModelSpec, transformer: Any) -> dict[str, int]:
    """Numbers of parameters: of the backbone, with the trainable part, trained, constant in the part; and the
    number of linears with an adapter. The part is added to `transformer`.
    """
    from uhr.models.adapters.peft_layers import all_layers

    base = sum(p.numel() for p in transformer.parameters())
    recipe.trainable.prepare(transformer, spec, recipe.seed)
    return {
        "base": base,
        "total": sum(p.numel() for p in transformer.parameters()),
        "trainable": sum(p.numel() for p in recipe.trainable.parameters(transformer).values()),
        "constant": sum(t.numel() for t in recipe.trainable.constants(transformer).values()),
        "linears": len(all_layers(transformer)),
    }


def _phase(recipe: Recipe, index: int, spec: ModelSpec, encoded: Sequence[NamedData]) -> dict[str, Any]:
    phase = recipe.phases[index]
    sets, buckets = _used(recipe, index, spec, encoded) if encoded else _assumed(recipe, index, spec)
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
    recipe: Recipe, index: int, spec: ModelSpec, encoded: Sequence[NamedData]
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
            buckets.append(_bucket(spec, order.use.data, size.height, size.width, len(rows), batches))
    return sets, buckets


def _assumed(
    recipe: Recipe, index: int, spec: ModelSpec
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same without data: squares of each data set's resolution, of unknown number."""
    phase, sets, buckets = recipe.phases[index], [], []
    for use in phase.data:
        side = use.resolution or phase.resolution or spec.native_size
        unknown = {"share": None, "rows": None, "batches_per_epoch": None, "epochs": None}
        sets.append({"name": use.data, **unknown})
        buckets.append(_bucket(spec, use.data, side, side, None, None))
    return sets, buckets


def _bucket(
    spec: ModelSpec, name: str, height: int, width: int, rows: int | None, batches: int | None
) -> dict[str, Any]:
    tokens = spec.tokens(height, width)
    return {
        "data": name,
        "size": f"{width}x{height}",
        "rows": rows,
        "batches_per_epoch": batches,
        "image_tokens": tokens,
        "tokens": tokens + spec.text_lengths[FAMILIES[spec.family].sequence],
    }


def _storage(
    recipe: Recipe,
    spec: ModelSpec,
    config: Mapping[str, Any],
    parameters: Mapping[str, int],
    encoded: Sequence[NamedData],
) -> dict[str, Any]:
    """Bytes on disk per image and caption (in bfloat16, the default of `encode`), and per checkpoint."""
    resolution = recipe.phases[0].resolution or spec.native_size
    side = resolution // spec.vae_factor
    family = FAMILIES[spec.family]
    shapes = family.text_shapes(config, spec.text_lengths[family.sequence])
    storage: dict[str, Any] = {
        "latents_per_picture": 2 * size_of((spec.latent_channels, side, side), "bfloat16"),
        "text_per_caption": sum(size_of(shape, "bfloat16") for shape in shapes.values()),
        "checkpoint": round(
            parameters["trainable"]
            * (4 + recipe.optimiser.state_bytes() + (4 if recipe.ema is not None else 0))
        )
        + 4 * parameters["constant"],
    }
    if encoded:
        storage["encoded_data"] = sum(part.bytes for each in encoded for part in each.data.info.parts)
    return storage


_STORED = {
    "latents_per_picture": "latents per image",
    "text_per_caption": "text per caption",
    "encoded_data": "encoded data",
}
"""How people read the keys of the storage."""


def print_estimate(plan: dict[str, Any]) -> None:
    """Print what `estimate` returns."""
    base, trainable = plan["parameters"]["base"], plan["parameters"]["trainable"]
    say(f"{plan['recipe']} on {plan['model']}: {plan['steps']:,} steps, {plan['samples']:,} samples")
    say(f"trained: {plan['trained']}")
    linears = plan["parameters"]["linears"]
    total = plan["parameters"]["total"]
    share = f"{trainable / base:.2%} of the backbone" + (f", in {linears} linears" if linears else "")
    say(f"trainable {trainable:,} of {total:,} parameters ({share})")
    if plan["average"] is not None:
        say(f"averaged adapter: {plan['average']}")
    for phase in plan["phases"]:
        epochs = f", {phase['epochs']:g} epochs" if phase["epochs"] is not None else ""
        say(f"\nphase {phase['name']}: {phase['steps']:,} steps at {phase['resolution']} px{epochs}")
        if len(phase["data"]) > 1:
            columns = ["name", "share", "rows", "batches_per_epoch", "epochs"]
            heads = ["data", "share of batches", "images", "batches per epoch", "epochs"]
            table(heads, [[each[name] for name in columns] for each in phase["data"]])
        columns = ["data", "size", "rows", "batches_per_epoch", "image_tokens", "tokens"]
        heads = ["data", "bucket", "images", "batches per epoch", "image tokens", "tokens with text"]
        table(heads, [[bucket[name] for name in columns] for bucket in phase["buckets"]])
    say("\nestimated memory at the longest sequence:")
    table(["what", "size"], [[name, human_bytes(size)] for name, size in plan["memory"].items() if size])
    if (gpu := plan.get("gpu")) is not None:
        state = "fits in" if gpu["fits"] else "does not fit in"
        say(f"{state} {gpu['title']}: {gibibytes(gpu['memory'])}, of which {gibibytes(gpu['usable'])} usable")
    say("\nstorage:")
    table(
        ["what", "size"],
        [[_STORED.get(name, name), human_bytes(size)] for name, size in plan["storage"].items()],
    )
