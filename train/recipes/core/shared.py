"""Values and sources that the recipes have in common, and recipes that differ from another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from uhr.base.config import Config
from uhr.train.recipes.core.base import Recipe
from uhr.train.recipes.core.runtime import Runtime

C = TypeVar("C", bound=Config)

RUNTIME = Runtime(
    device="auto",
    precision="bfloat16",
    gradient_checkpointing=True,
    checkpoint_every=500,
    keep_checkpoints=2,
)

GENERAL = {
    "name": "ours",
    "about": "ours",
    "surgeries": "none: the published architecture",
    "windows": "none: the published architecture",
    "proportional": "off: the published attention",
    "init": "ours: train a part further if one is given",
    "phases.name": "ours",
    "phases.data": "ours: each row as often as the others",
    "phases.resolution": "the model's native size",
    "phases.schedule": "constant, as no other is mentioned",
    "phases.warmup": "none, as none is mentioned",
    "optimiser": "ours: torch's defaults",
    "batch.micro": "ours: the least memory",
    "batch.remainder": "ours: every row once per epoch",
    "latents": "ours, as diffusers: a new draw from the VAE's distribution at each visit",
    "captions": "ours: the first caption of each image",
    "caption_dropout": "none, as none is mentioned",
    "ema": "none, as none is mentioned",
    "on_nonfinite": "ours: nothing is left out silently",
    "seed": "ours",
    "sampling": "ours: the sampler of the recipe's paper",
    "runtime": "ours",
    "validation": "by default nothing is measured",
}
"""Sources of the values that most recipes leave as they are."""


def sources(**own: str) -> Mapping[str, str]:
    """`GENERAL` with a recipe's own sources; `__` in a name is the dot of a path."""
    return {**GENERAL, **{name.replace("__", "."): text for name, text in own.items()}}


def changed(config: C, **values: Any) -> C:
    """Copy a part of a recipe with some other values, checked as a new one is."""
    return type(config)(**{**dict(config), **values})


def derived(recipe: Recipe, own: Mapping[str, str], **values: Any) -> Recipe:
    """Copy a recipe with some other values.

    own: sources by dotted path. One replaces those that `recipe` has of the path and of everything below it.
    """
    kept = {
        path: text
        for path, text in recipe.sources.items()
        if not any(path.startswith(f"{each}.") for each in own)
    }
    return changed(recipe, **values, sources={**kept, **own})
