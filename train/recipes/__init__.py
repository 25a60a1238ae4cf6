"""The recipes by name. A new one is a file here and a line in `NAMES`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uhr.base.config import apply_sets, build, read_yaml
from uhr.base.console import say, table
from uhr.base.errors import UserError, load_object, unknown
from uhr.train.recipes.base import Recipe, leaves

NAMES = {"lora": "uhr.train.recipes.lora:RECIPE"}


def recipe(name: str) -> Recipe:
    """The recipe of that name, or of an import path `mypkg.recipes:Mine` (a `Recipe`, or a function giving
    one).
    """
    if name not in NAMES and ":" not in name:
        raise unknown("recipe", name, NAMES)
    found = load_object(NAMES.get(name, name), "recipe")
    found = found() if callable(found) else found
    if not isinstance(found, Recipe):
        raise UserError(
            f"'{name}' is a {type(found).__name__}", "give a Recipe, or a function that returns one"
        )
    return found


def resolve(name: str | None, config: Path | None = None, sets: list[str] | None = None) -> Recipe:
    """A recipe with the differences of a YAML file, then of the command line, put in.

    The file starts with `recipe: NAME`; entries of `phases` are named or counted: `phases: {main: {steps:
    500}}`.
    """
    differences: dict[str, Any] = {}
    if config is not None:
        differences = read_yaml(config)
        inside = differences.pop("recipe", None)
        if not isinstance(inside, str):
            raise UserError(f"{config} does not say which recipe it changes", "begin it with 'recipe: NAME'")
        if name is not None and name != inside:
            raise UserError(f"{config} is for recipe '{inside}', not '{name}'", f"say '{inside}', or nothing")
        name = inside
    if name is None:
        raise UserError("no recipe is named", f"name one ({', '.join(NAMES)}) or give --config FILE")
    base = recipe(name)
    where = str(config) if config is not None else "--set"
    tree = merged(base.model_dump(mode="json"), differences, where)
    resolved = build(Recipe, apply_sets(tree, sets or []), where)
    # where values come from is no configuration: it stays the recipe's own
    return resolved.model_copy(update={"sources": base.sources, "origin": base.model_dump(mode="json")})


def merged(tree: Any, differences: Any, where: str) -> Any:
    """`tree` with nested differences put in; a mapping over a list names its entries, or counts them."""
    if not isinstance(differences, Mapping):
        return differences
    if isinstance(tree, list):
        result = list(tree)
        for key, value in differences.items():
            index = _entry(result, str(key), where)
            result[index] = merged(result[index], value, where)
        return result
    tree = tree if isinstance(tree, Mapping) else {}
    return {**tree, **{key: merged(tree.get(key), value, where) for key, value in differences.items()}}


def _entry(entries: list[Any], key: str, where: str) -> int:
    if key.isdigit() and int(key) < len(entries):
        return int(key)
    names = [entry.get("name") for entry in entries if isinstance(entry, Mapping)]
    if key not in names:
        raise unknown("entry", key, [name for name in names if name], where)
    return names.index(key)


def described(recipe: Recipe) -> list[dict[str, Any]]:
    """Every value of a recipe: its dotted path, the value, and its source ("set by you" where that was
    changed).
    """
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


def print_described(recipe: Recipe, rows: list[dict[str, Any]]) -> None:
    """The same for people."""
    say(f"{recipe.name}: {recipe.about}\n")
    values = [row for row in rows if row["path"] not in ("name", "about")]
    table(
        ["value of", "is", "source"],
        [[row["path"], json.dumps(row["value"]), row["source"]] for row in values],
    )
    say("\nchange one with --set, several with --config FILE (`recipe: NAME`, then what differs)")
