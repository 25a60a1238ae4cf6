"""The recipe of a LoRA: its steps by the number of images, its validation, and its form in YAML."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uhr.base.config import apply_sets
from uhr.base.errors import UserError
from uhr.base.files import atomic
from uhr.models.specs.spec import ModelSpec
from uhr.train.recipes import resolve
from uhr.train.recipes.core.base import Recipe
from uhr.train.run.estimate.fitting import PATHS

RECIPES = {"flux1": "lora", "flux2": "lora-flux2"}
"""The recipe for each family."""

VISITS = 100
"""How often each image is trained on. ai-toolkit's example of a FLUX LoRA trains 2,000 steps of one image,
for some 20 of them; fluxgym's default is 16 epochs of 10 repeats; diffusers' README of DreamBooth for FLUX
has 500 steps of 4 for 5 images."""

LEAST, MOST = 1_000, 8_000
"""Bounds of the images in all steps: few images need steps to be learned at all, and of many each is seen
less often. ai-toolkit calls 500 to 4,000 steps of one image a good range; the upper bound is the 2,000 steps
of 4 of the recipe `lora`."""

INTERVALS = 4
"""Into how many parts checkpoints and validation images divide a run."""


def steps_for(images: int, batch: int) -> int:
    """The optimiser steps for a number of images in batches of `batch`: `VISITS` visits of each, but at
    least `LEAST` and at most `MOST` images in all.
    """
    return math.ceil(min(max(VISITS * images, LEAST), MOST) / batch)


def recipe_name(spec: ModelSpec) -> str:
    """Raises UserError for a model of a family without such a recipe."""
    if spec.family not in RECIPES:
        raise UserError(f"{spec.name} is of family {spec.family}", f"take one of {', '.join(RECIPES)}")
    return RECIPES[spec.family]


def changes(
    spec: ModelSpec,
    images: int,
    resolution: int,
    prompts: Sequence[str],
    settings: Sequence[str],
    sets: Sequence[str],
) -> list[str]:
    """The changes to the recipe, as `--set` takes them; the user's own (`sets`) come last.

    settings: those of memory and time, or of a CPU. resolution: of the data, px; also the validation images
    have it.
    """
    name = recipe_name(spec)
    own = [*_resolved(name, ()).changes_for(spec), *settings]
    if resolution != spec.native_size:
        own.append(f"phases.main.resolution={resolution}")

    def changed(steps: int, every: int) -> list[str]:
        shown = {"prompts": list(prompts), "every": every, "size": [resolution, resolution]}
        validation = f"validation.images={json.dumps(shown, ensure_ascii=False)}"
        length = [f"phases.main.steps={steps}", f"runtime.checkpoint_every={every}"]
        return [*own, *length, validation, *sets]

    # the user may have set the batch, which the steps depend on, and the steps
    steps = steps_for(images, _resolved(name, changed(1, 1)).batch.size)
    return changed(steps, math.ceil(_resolved(name, changed(steps, 1)).steps / INTERVALS))


def cpu_settings(batch: int) -> list[str]:
    """Settings for a CPU: many of them compute bfloat16 slowly, and models for them need no memory saved."""
    runtime = {"device": "cpu", "precision": "float32", "gradient_checkpointing": "false"}
    return [*(f"runtime.{name}={value}" for name, value in runtime.items()), f"batch.micro={batch}"]


def resolved(spec: ModelSpec, changed: Sequence[str]) -> Recipe:
    """The recipe with changes. Raises UserError for invalid ones."""
    return _resolved(recipe_name(spec), changed)


def _resolved(name: str, changed: Sequence[str]) -> Recipe:
    recipe = resolve(name, None, list(changed))
    assert isinstance(recipe, Recipe)
    return recipe


def kept(sets: Sequence[str]) -> list[str]:
    """The paths among `fitting.PATHS` that the user has set."""
    given = [change.partition("=")[0] for change in sets]
    return [path for path in PATHS if any(path == each or path.startswith(f"{each}.") for each in given)]


def write_recipe(file: Path, spec: ModelSpec, name: str, changed: Sequence[str]) -> None:
    """Write a recipe with changes as `--config` reads it."""
    import yaml

    tree: dict[str, Any] = {"recipe": recipe_name(spec), **apply_sets({}, list(changed))}
    head = (
        f"# What `uhr train lora` chose for {name}. `uhr train show --config FILE` has every value of the\n"
        "# recipe with its source. It may be changed until training begins.\n"
    )
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)
    with atomic(file) as temporary:
        temporary.write_text(head + text, encoding="utf-8")
