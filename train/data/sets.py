"""The encoded data sets of a run, by the names under which a recipe uses them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uhr.base.errors import UserError, unknown
from uhr.models.specs.spec import ModelSpec
from uhr.train.data.names import NamedPath
from uhr.train.data.reader import EncodedData
from uhr.train.encode.buckets import TABLES, table_side
from uhr.train.recipes.core.base import DataUseBase, PhaseBase, Recipe, RecipeBase


@dataclass(frozen=True)
class NamedData:
    """One opened data set and its name."""

    name: str
    data: EncodedData


def open_sets(recipe: RecipeBase, given: Iterable[NamedPath | Path | str]) -> list[NamedData]:
    """Open the folders and addresses. A folder without a name is the recipe's only data set.

    Raises UserError for a name that the recipe does not use, a missing name, and two folders of one name and
    one resolution.
    """
    names = recipe.data_names
    found: list[NamedData] = []
    for entry in given:
        name, path = entry if isinstance(entry, NamedPath) else NamedPath(None, entry)
        if name is None:
            if len(names) > 1:
                options = " ".join(f"--data {each}=DIR" for each in names)
                raise UserError(
                    f"recipe {recipe.name} uses {len(names)} data sets, and {path} has no name", options
                )
            name = names[0]
        if name not in names:
            raise unknown("data set", name, names, f"recipe {recipe.name}")
        data = EncodedData.open(path, recipe.runtime.data_cache << 30)
        for other in found:
            if (other.name, other.data.info.resolution) == (name, data.info.resolution):
                what = f"{path} and {other.data.path} are both data set '{name}' at {data.info.resolution} px"
                raise UserError(what, "give one of them, or name them differently in the recipe")
        if isinstance(recipe, Recipe):
            _check_captions(recipe, path, data.info.config.captions)
        found.append(NamedData(name, data))
    return found


def _check_captions(recipe: Recipe, path: Path | str, columns: Sequence[str]) -> None:
    if recipe.captions and not set(columns) & set(recipe.captions):
        what = f"recipe {recipe.name} draws captions from {', '.join(recipe.captions)}, and {path} has"
        raise UserError(
            f"{what} {', '.join(columns)}", "encode it with --set captions=[...], or set captions"
        )


def rows_of(use: DataUseBase, data: EncodedData, where: str = "where") -> list[np.ndarray]:
    """The rows that a phase uses of a data set, for each bucket ascending; errors call its condition
    `where`.
    """
    return data.lowest(data.select(use.where, where), use.lowest)


def data_for(use: DataUseBase, phase: PhaseBase, spec: ModelSpec, sets: Sequence[NamedData]) -> EncodedData:
    """The data that a phase uses. Raises UserError if they are not among those given."""
    resolution = use.resolution or phase.resolution or spec.native_size
    of_name = [each.data for each in sets if each.name == use.data]
    for data in of_name:
        if data.info.resolution == resolution:
            return data
    if not of_name:
        what = f"phase '{phase.name}' needs data set '{use.data}' (at {resolution} px), and it is not given"
        raise UserError(what, f"give it as --data {use.data}=DIR")
    have = ", ".join(f"{data.info.resolution} px" for data in of_name)
    other = of_name[0].info.resolution if len(of_name) == 1 else "N"
    what = f"phase '{phase.name}' needs data set '{use.data}' encoded at {resolution} px"
    sizes = [f"`--set buckets={name}`" for name in TABLES if table_side(name) == resolution]
    encode = " or with ".join([f"`uhr train encode --set resolution={resolution}`", *sizes])
    raise UserError(
        f"{what}, and it is given at {have}",
        f"encode with {encode}, or train with --set phases.{phase.name}.resolution={other}",
    )


def check_windows(recipe: Recipe, spec: ModelSpec, sets: Sequence[NamedData]) -> None:
    """Raise UserError for data without the guide, or of sizes, that the recipe's windows cannot read."""
    if recipe.windows is None:
        return
    for each in sets:
        sizes = [(bucket.height, bucket.width) for bucket in each.data.buckets]
        recipe.windows.check_sizes(spec, str(each.data.path), sizes, each.data.info.config.guide)


def check_all_used(recipe: RecipeBase, spec: ModelSpec, sets: Sequence[NamedData]) -> None:
    """Raise UserError for a data set that no phase uses."""
    measured = recipe.validation.measured
    extra = [DataUseBase(data=rows.data, resolution=rows.resolution) for rows in measured]
    pairs = ((use, phase) for phase in recipe.phases for use in (*phase.data, *extra))
    used = {id(data_for(use, phase, spec, sets)) for use, phase in pairs}
    for each in sets:
        if id(each.data) not in used:
            data = each.data
            what = f"{data.path} was encoded at {data.info.resolution} px"
            raise UserError(
                f"{what}, and no phase of {recipe.name} uses it as '{each.name}'",
                f"leave it out, or --set phases.{recipe.phases[0].name}.resolution={data.info.resolution}",
            )
