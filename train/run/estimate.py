"""`uhr train plan`: estimates a training run without loading weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uhr.base.console import say, table
from uhr.base.errors import UserError
from uhr.base.files import human_bytes
from uhr.models.estimate.shapes import empty_component, spec_named
from uhr.models.families.registry import FAMILIES
from uhr.models.loading.model import empty_transformer
from uhr.models.zoo import ModelName, ModelSpec, get
from uhr.train.data.reader import EncodedData
from uhr.train.encode.tensors import size_of
from uhr.train.recipes.base import Recipe
from uhr.train.run.average import describe_average
from uhr.train.run.job import plan_for

WORK_PER_TOKEN = 24
"""Numbers per token and channel that one transformer block keeps for its backward pass: normalised inputs,
q, k, v before and after normalisation and rotation, attention output, and a feed-forward four times as wide,
twice."""


def estimate(recipe: Recipe, model: str | ModelName, data: Sequence[Path]) -> dict[str, Any]:
    """Estimate steps, batches, tokens, parameters, memory and storage of a run, as plain values.

    model: a checkpoint, or the name of a published spec. Sizes are in bytes.
    """
    spec, transformer = _backbone(ModelName.of(model))
    recipe.check(spec)
    encoded = {d.info.resolution: d for d in map(EncodedData.open, data)}
    phases = [_phase(recipe, index, spec, encoded) for index in range(len(recipe.phases))]
    parameters = _parameters(recipe, spec, transformer)
    longest = max(bucket["tokens"] for phase in phases for bucket in phase["buckets"])
    return {
        "recipe": recipe.name,
        "model": spec.name,
        "steps": recipe.steps,
        "average": None if recipe.ema is None else describe_average(recipe.ema, recipe.steps),
        "samples": recipe.steps * recipe.batch.size,
        "phases": phases,
        "trained": recipe.trainable.describe(spec),
        "parameters": {name: parameters[name] for name in ("base", "trainable", "linears")},
        "memory": _memory(recipe, parameters, longest),
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
    """Numbers of parameters of the backbone and of the trainable part (trained, and constant), of linears
    with an adapter, of blocks, and the width. The trainable part is added to `transformer`.
    """
    from uhr.models.adapters.peft_layers import all_layers

    blocks = [m for m in transformer.modules() if type(m).__name__ in (spec.double_block, spec.single_block)]
    base = sum(p.numel() for p in transformer.parameters())
    recipe.trainable.prepare(transformer, spec, recipe.seed)
    return {
        "base": base,
        "trainable": sum(p.numel() for p in recipe.trainable.parameters(transformer).values()),
        "constant": sum(t.numel() for t in recipe.trainable.constants(transformer).values()),
        "linears": len(all_layers(transformer)),
        "blocks": len(blocks),
        "width": transformer.inner_dim,
    }


def _phase(recipe: Recipe, index: int, spec: ModelSpec, encoded: dict[int, EncodedData]) -> dict[str, Any]:
    phase = recipe.phases[index]
    resolution = phase.resolution or spec.native_size
    known = encoded.get(resolution)
    if encoded and known is None:
        raise UserError(
            f"phase '{phase.name}' needs data at {resolution} px, and the data given have {sorted(encoded)}",
            f"give the data of that resolution, or --set phases.{phase.name}.resolution=N",
        )
    if known is None:
        sizes: list[tuple[int, int, int | None, int | None]] = [(resolution, resolution, None, None)]
        per_epoch = None
    else:
        plan = plan_for(recipe, index, known)
        counts = zip(known.buckets, plan.batches_of_bucket, strict=True)
        sizes = [(bucket.height, bucket.width, bucket.rows, batches) for bucket, batches in counts]
        per_epoch = plan.batches_per_epoch
    return {
        "name": phase.name,
        "steps": phase.steps,
        "resolution": resolution,
        "batches_per_epoch": per_epoch,
        "epochs": round(phase.steps / per_epoch, 2) if per_epoch else None,
        "buckets": [
            {
                "size": f"{width}x{height}",
                "rows": rows,
                "batches_per_epoch": batches,
                "image_tokens": spec.tokens(height, width),
                "tokens": spec.tokens(height, width) + spec.text_lengths[FAMILIES[spec.family].sequence],
            }
            for height, width, rows, batches in sizes
        ],
    }


def _memory(recipe: Recipe, parameters: dict[str, int], tokens: int) -> dict[str, int]:
    """Estimate the bytes on the device at the longest sequence.

    weights: the frozen backbone. adapter: values, gradients, two moments, the average if there is one, and
    constants that belong to it.
    activations: each block's input, and the tensors kept by the block being differentiated (by all blocks
    without gradient checkpointing).
    """
    width = 2 if recipe.runtime.precision == "bfloat16" else 4
    per_block = recipe.batch.micro * tokens * parameters["width"] * width
    at_work = 1 if recipe.runtime.gradient_checkpointing else parameters["blocks"]
    sizes = {
        "weights": parameters["base"] * width,
        "adapter": parameters["trainable"] * (16 + (4 if recipe.ema is not None else 0))
        + 4 * parameters["constant"],
        "activations": per_block * (parameters["blocks"] + WORK_PER_TOKEN * at_work),
    }
    return {**sizes, "total": sum(sizes.values())}


def _storage(
    recipe: Recipe,
    spec: ModelSpec,
    config: Mapping[str, Any],
    parameters: Mapping[str, int],
    encoded: dict[int, EncodedData],
) -> dict[str, Any]:
    """Bytes on disk per image and caption (in bfloat16, the default of `encode`), and per checkpoint."""
    resolution = recipe.phases[0].resolution or spec.native_size
    side = resolution // spec.vae_factor
    family = FAMILIES[spec.family]
    shapes = family.text_shapes(config, spec.text_lengths[family.sequence])
    storage: dict[str, Any] = {
        "latents_per_picture": 2 * size_of((spec.latent_channels, side, side), "bfloat16"),
        "text_per_caption": sum(size_of(shape, "bfloat16") for shape in shapes.values()),
        "checkpoint": parameters["trainable"] * (12 + (4 if recipe.ema is not None else 0))
        + 4 * parameters["constant"],
    }
    if encoded:
        storage["encoded_data"] = sum(part.bytes for data in encoded.values() for part in data.info.parts)
    return storage


def print_estimate(plan: dict[str, Any]) -> None:
    """Print what `estimate` returns."""
    base, trainable = plan["parameters"]["base"], plan["parameters"]["trainable"]
    say(f"{plan['recipe']} on {plan['model']}: {plan['steps']:,} steps, {plan['samples']:,} samples")
    say(f"trained: {plan['trained']}")
    linears = plan["parameters"]["linears"]
    share = f"{trainable / base:.2%} of the backbone" + (f", in {linears} linears" if linears else "")
    say(f"trainable {trainable:,} of {base + trainable:,} parameters ({share})")
    if plan["average"] is not None:
        say(f"averaged adapter: {plan['average']}")
    for phase in plan["phases"]:
        epochs = f", {phase['epochs']:g} epochs" if phase["epochs"] is not None else ""
        say(f"\nphase {phase['name']}: {phase['steps']:,} steps at {phase['resolution']} px{epochs}")
        table(
            ["bucket", "images", "batches per epoch", "image tokens", "tokens with text"],
            [
                [b["size"], b["rows"], b["batches_per_epoch"], b["image_tokens"], b["tokens"]]
                for b in phase["buckets"]
            ],
        )
    say("\nestimated memory at the longest sequence:")
    table(["what", "size"], [[name, human_bytes(size)] for name, size in plan["memory"].items()])
    say("\nstorage:")
    table(
        ["what", "size"],
        [[name.replace("_", " "), human_bytes(size)] for name, size in plan["storage"].items()],
    )
