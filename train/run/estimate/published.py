"""The numbers that come with the package: every recipe on each published spec that it can train.

`python -m uhr.train.run.estimate.published` writes them to `published.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from uhr.base.errors import UserError
from uhr.base.files import write_json
from uhr.models.estimate.shapes import empty_component
from uhr.models.specs.registry import SPECS
from uhr.models.specs.spec import ModelSpec
from uhr.train.recipes import NAMES, resolve
from uhr.train.recipes.core.base import Recipe, RecipeBase
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.run.estimate.counts import Counts
from uhr.train.run.estimate.counts import key_of as key_of_backbone
from uhr.train.run.estimate.stored import PUBLISHED, name_of
from uhr.train.run.estimate.vae import VaeStep
from uhr.train.run.estimate.vae import key_of as key_of_vae

TRIED = ("runtime.quantize=int8", "runtime.quantize=nf4", "runtime.gradient_checkpointing=true")
"""The changes that `fitting.settings` tries and on which the numbers depend."""


def planned() -> Iterator[tuple[RecipeBase, ModelSpec]]:
    """Each recipe with each published spec that it can train, adapted to its family and guidance, as it is
    and with each of `TRIED` that it allows."""
    for spec in SPECS.values():
        if spec.tiny:
            continue
        for name in NAMES:
            recipe = resolve(name)
            sets = recipe.changes_for(spec) if isinstance(recipe, Recipe) else []
            for more in ([], *([change] for change in TRIED)):
                try:
                    changed = resolve(name, None, [*sets, *more])
                    changed.check(spec)
                except UserError:
                    continue
                yield changed, spec


def entry(recipe: RecipeBase, spec: ModelSpec) -> tuple[str, Any]:
    """The name and the function that counts the numbers of a recipe on a spec, without data."""
    if isinstance(recipe, VaeRecipe):
        side = recipe.phases[0].resolution or spec.native_size
        name = name_of(key_of_vae(recipe, spec, side, side))
        return name, lambda: VaeStep.of(recipe, spec, empty_component(spec, "vae"), side, side)
    assert isinstance(recipe, Recipe)
    name = name_of(key_of_backbone(recipe, spec))
    return name, lambda: Counts.of(recipe, spec, empty_component(spec, "transformer"))


if __name__ == "__main__":
    numbers: dict[str, Any] = {}
    for one, on in planned():
        key, count = entry(one, on)
        if key not in numbers:
            numbers[key] = dataclasses.asdict(count())
    write_json(PUBLISHED, dict(sorted(numbers.items())))
