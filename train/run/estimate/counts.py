"""The sizes of a backbone and of the part that is trained, counted on torch's meta device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uhr.models.estimate.operations import BackboneCost
from uhr.models.estimate.shapes import empty_component
from uhr.models.families.registry import FAMILIES
from uhr.models.specs.spec import ModelSpec
from uhr.train.encode.stored.tensors import size_of
from uhr.train.recipes.core.base import Recipe
from uhr.train.run.estimate.memory import BaseSizes, PartSizes
from uhr.train.run.estimate.stored import counted
from uhr.train.trainable import NAMES


@dataclass(frozen=True)
class Counts:
    """Sizes of a backbone, what its calls cost, and numbers of the trainable part.

    total: parameters of the backbone with the part. linears: those that have an adapter.
    caption: bytes of one caption's text embeddings in bfloat16, the default of `encode`.
    """

    base: BaseSizes
    cost: BackboneCost
    part: PartSizes
    total: int
    linears: int
    caption: int

    @classmethod
    def of(cls, recipe: Recipe, spec: ModelSpec, transformer: Any) -> Counts:
        """Count them on a transformer that may have no weights. The part is added to it."""
        from uhr.models.adapters.peft_layers import all_layers

        base, cost = BaseSizes.of(recipe, spec, transformer), BackboneCost.of(transformer)
        part = recipe.trainable
        part.prepare(transformer, spec, recipe.seed)
        total = sum(p.numel() for p in transformer.parameters())
        trained = sum(p.numel() for p in part.parameters(transformer).values())
        constant = sum(t.numel() for t in part.constants(transformer).values())
        # an adapter's weights are no weights of the backbone
        inside = trained - (total - base.parameters)
        family = FAMILIES[spec.family]
        texts = family.text_shapes(dict(transformer.config), spec.text_lengths[family.sequence])
        caption = sum(size_of(shape, "bfloat16") for shape in texts.values())
        sizes = PartSizes(trained, inside, constant)
        return cls(base, cost, sizes, total, len(all_layers(transformer)), caption)

    @classmethod
    def read(cls, tree: dict[str, Any]) -> Counts:
        """The counts that `dataclasses.asdict` wrote. Raises TypeError or KeyError for anything else."""
        return cls(
            BaseSizes(**tree["base"]),
            BackboneCost(**tree["cost"]),
            PartSizes(**tree["part"]),
            tree["total"],
            tree["linears"],
            tree["caption"],
        )


def counts_of_spec(recipe: Recipe, spec: ModelSpec) -> Counts:
    """The counts of a published spec, stored ones if there are some."""
    count = lambda: Counts.of(recipe, spec, empty_component(spec, "transformer"))  # noqa: E731
    if recipe.trainable.kind not in NAMES:
        # a class of the user's, whose code may change
        return count()
    return counted(key_of(recipe, spec), Counts.read, count, dataclasses.asdict)


def key_of(recipe: Recipe, spec: ModelSpec) -> Mapping[str, Any]:
    """The values on which the counts depend."""
    runtime = recipe.runtime
    return {
        "spec": spec.name,
        "part": recipe.trainable.model_dump(mode="json"),
        "precision": runtime.precision,
        "quantize": runtime.quantize,
    }
