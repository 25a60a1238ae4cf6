"""The registry of recipes. A new recipe is a file in this folder and a line in `NAMES`.

`core` has the classes that recipes consist of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uhr.base.config import Config, apply_sets, build, read_yaml
from uhr.base.console import say, table, warn
from uhr.base.errors import UserError, load_object, unknown
from uhr.train.recipes.core.base import Phase, Recipe, RecipeBase, leaves
from uhr.train.recipes.core.vae import VaeRecipe
from uhr.train.trainable import AnyTrainable

NAMES = {
    "lora": "uhr.train.recipes.lora:RECIPE",
    "lora-flux2": "uhr.train.recipes.lora_flux2:RECIPE",
    "gca-stage1": "uhr.train.recipes.gca_stage1:RECIPE",
    "gca-stage2": "uhr.train.recipes.gca_stage2:RECIPE",
    "urae-2k": "uhr.train.recipes.urae_2k:RECIPE",
    "urae-4k@paper": "uhr.train.recipes.urae_4k_paper:RECIPE",
    "urae-4k@code": "uhr.train.recipes.urae_4k_code:RECIPE",
    "ultragen": "uhr.train.recipes.ultragen:RECIPE",
    "ultraflux-stage1": "uhr.train.recipes.ultraflux_stage1:RECIPE",
    "ultraflux-stage2": "uhr.train.recipes.ultraflux_stage2:RECIPE",
    "ultraflux": "uhr.train.recipes.ultraflux:RECIPE",
    "vae-f16": "uhr.train.recipes.vae_f16:RECIPE",
}

SHORT = {"urae-4k": "urae-4k@code"}
"""A name without its version, and the recipe that it means."""

STORED = "the stored recipe"


def recipe(name: str) -> RecipeBase:
    """The recipe of a name, or of an import path such as `mypkg.recipes:Mine`, which is a `Recipe` or a
    function that returns one.
    """
    if name in SHORT:
        warn(f"recipe {name} is {SHORT[name]}; the other is {_others(name)}")
        name = SHORT[name]
    if name not in NAMES and ":" not in name:
        raise unknown("recipe", name, NAMES)
    found = load_object(NAMES.get(name, name), "recipe")
    found = found() if callable(found) else found
    if not isinstance(found, RecipeBase):
        raise UserError(
            f"'{name}' is a {type(found).__name__}", "give a Recipe, or a function that returns one"
        )
    return found


def read_recipe(tree: Mapping[str, Any]) -> RecipeBase:
    """The recipe of a resolved configuration, as `run.json` and checkpoints have it.

    Raises UserError for a key or value that this version does not have.
    """
    return build(recipe_class(tree), tree, STORED)


def recipe_class(tree: Mapping[str, Any]) -> type[RecipeBase]:
    """The class of a resolved configuration, by the component that it trains."""
    trainable = tree.get("trainable")
    if trainable is None:
        # of an earlier version
        return Recipe
    part = build(_Part, {"trainable": trainable}, STORED).trainable
    return VaeRecipe if part.component == "vae" else Recipe


class _Part(Config):
    """The part of a stored recipe that says which class it is of."""

    trainable: AnyTrainable


def _others(name: str) -> str:
    return ", ".join(each for each in NAMES if each.startswith(f"{name}@") and each != SHORT[name])


def resolve(name: str | None, config: Path | None = None, sets: list[str] | None = None) -> RecipeBase:
    """The recipe, changed by a YAML file and then by `--set` options.

    The file starts with `recipe: NAME`; entries of `phases` are addressed by name or number: `phases: {main:
    {steps: 500}}`.
    """
    differences: dict[str, Any] = {}
    if config is not None:
        differences = read_yaml(config)
        inside = differences.pop("recipe", None)
        if not isinstance(inside, str):
            raise UserError(
                f"{config} does not name the recipe that it changes", "begin it with 'recipe: NAME'"
            )
        if name is not None and name != inside:
            raise UserError(
                f"{config} is for recipe '{inside}', not '{name}'", f"name '{inside}', or no recipe"
            )
        name = inside
    if name is None:
        raise UserError("no recipe is named", f"name one ({', '.join(NAMES)}) or give --config FILE")
    base = recipe(name)
    where = str(config) if config is not None else "--set"
    tree = merge(base.model_dump(mode="json"), differences, where)
    resolved = build(type(base), apply_sets(tree, sets or []), where)
    # sources are not configuration: they stay those of the recipe
    return resolved.model_copy(update={"sources": base.sources, "origin": base.model_dump(mode="json")})


def merge(tree: Any, differences: Any, where: str) -> Any:
    """Merge nested differences into `tree`; the keys of a mapping over a list are names or numbers of
    entries.
    """
    if not isinstance(differences, Mapping):
        return differences
    if isinstance(tree, list):
        result = list(tree)
        for key, value in differences.items():
            index = _entry(result, str(key), where)
            result[index] = merge(result[index], value, where)
        return result
    tree = tree if isinstance(tree, Mapping) else {}
    return {**tree, **{key: merge(tree.get(key), value, where) for key, value in differences.items()}}


def _entry(entries: list[Any], key: str, where: str) -> int:
    if key.isdigit() and int(key) < len(entries):
        return int(key)
    names = [entry.get("name") for entry in entries if isinstance(entry, Mapping)]
    if key not in names:
        raise unknown("entry", key, [name for name in names if name], where)
    return names.index(key)


def sets_between(one: Any, two: Any, path: str = "") -> list[str]:
    """The changes, as `--set` takes them, that make the resolved recipe `two` of `one`."""
    if one == two:
        return []
    if isinstance(one, Mapping) and isinstance(two, Mapping) and one.keys() == two.keys() and one:
        inside = [(key, one[key], two[key]) for key in two]
    elif _entries(one) and _entries(two) and len(one) == len(two):
        inside = [(index, before, after) for index, (before, after) in enumerate(zip(one, two, strict=True))]
    else:
        return [f"{path}={json.dumps(two)}"]
    dot = f"{path}." if path else ""
    return [change for key, a, b in inside for change in sets_between(a, b, f"{dot}{key}")]


def _entries(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def describe(recipe: RecipeBase) -> list[dict[str, Any]]:
    """List every value of a recipe with its dotted path and its source ("set by you" if it was changed)."""
    values = dict(leaves(recipe.model_dump(mode="json")))
    given = dict(leaves(recipe.origin)) if recipe.origin is not None else values
    return [
        {
            "path": path,
            "value": value,
            "source": recipe.source(path) if given.get(path) == value else "set by you",
        }
        for path, value in values.items()
    ]


def unused(recipe: RecipeBase) -> set[str]:
    """The paths of values that have no effect with the others: they are shown only where a user set them."""
    found = set[str]()
    for number, phase in enumerate(recipe.phases):
        if isinstance(phase, Phase):
            found |= {f"phases.{number}.timesteps.{name}" for name in phase.timesteps.unused}
        for place, use in enumerate(phase.data):
            values = use.model_dump()
            idle = [name for name, value in values.items() if value in (None, {})]
            idle += ["repeats"] if use.weight is not None else []
            found |= {f"phases.{number}.data.{place}.{name}" for name in idle}
    return found


def print_description(recipe: RecipeBase, rows: list[dict[str, Any]]) -> None:
    """Print what `describe` returns as a table."""
    say(f"{recipe.name}: {recipe.about}\n")
    hidden = {"name", "about", *unused(recipe)}
    values = [row for row in rows if row["path"] not in hidden or row["source"] == "set by you"]
    table(
        ["value of", "is", "source"],
        [[row["path"], json.dumps(row["value"]), row["source"]] for row in values],
    )
    say("\nchange one with --set, several with --config FILE (`recipe: NAME`, then what differs)")
