"""The file of an experiment: which arms are compared, with which training seeds, under which protocol."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from uhr.base.config import Config, apply_sets, build, read_yaml
from uhr.base.errors import UserError
from uhr.base.files import user_path
from uhr.models.loading.opening import ModelName
from uhr.train.recipes import resolve
from uhr.train.recipes.core.base import RecipeBase

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ExperimentArm(Config):
    """One arm: a model with a sampler, after training by a recipe or as it is.

    Every value is what the option of the same name takes on a command line.

    Args:
        model, base, spec: the model; `base` and `spec` are needed where `--model` needs them.
        recipe: a name of `uhr train recipes`, or a YAML file that begins with `recipe: NAME`. None: nothing
            is trained, and the arm has one set of images whatever the number of training seeds.
        set: values of the recipe (`--set`); data, init: of `uhr train run`.
        sampler: of the images. None is the recipe's.
        adapters: published weights (`--adapter`) of an arm that is not trained; trained_on: their training
            data, of `uhr eval run`.
        steps, guidance, options: of the sampler; the guidance of a trained arm is `sampling.guidance` of its
            recipe.
    """

    about: str = ""
    model: str
    base: str | None = None
    spec: str | None = None
    recipe: str | None = None
    set: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    init: tuple[str, ...] = ()
    sampler: str | None = None
    adapters: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()
    steps: int | None = Field(None, ge=1)
    guidance: float | None = None
    options: tuple[str, ...] = ()

    @property
    def named(self) -> ModelName:
        return ModelName(self.model, self.spec, self.base)

    @property
    def named_recipe(self) -> tuple[str | None, Path | None]:
        """The recipe as the name or the file of the two options that take one."""
        if self.recipe is None or Path(self.recipe).suffix not in (".yaml", ".yml"):
            return self.recipe, None
        return None, user_path(self.recipe)

    def resolved(self, seed: int | None) -> RecipeBase | None:
        """The recipe with `set` and a training seed; None if nothing is trained. Raises UserError if it
        cannot be made.
        """
        return None if self.recipe is None else resolve(*self.named_recipe, [*self.set, f"seed={seed}"])

    @property
    def sampler_options(self) -> dict[str, Any]:
        """`options` as values by name."""
        return apply_sets({}, list(self.options))

    @model_validator(mode="after")
    def _of_one_kind(self) -> ExperimentArm:
        if self.recipe is None:
            given = [name for name in ("set", "data", "init") if getattr(self, name)]
            if given:
                raise ValueError(f"{' and '.join(given)} without a recipe: name one, or leave them out")
            if self.sampler is None:
                raise ValueError("an arm without a recipe needs a sampler")
            return self
        if not self.data:
            raise ValueError("a recipe needs data: a list of folders that `uhr train encode` wrote")
        if self.adapters:
            raise ValueError("adapters of a trained arm are its init")
        if self.trained_on:
            raise ValueError("a trained arm was trained on its data: leave trained_on out")
        if self.guidance is not None:
            raise ValueError("the guidance of a trained arm is a value of its recipe: set sampling.guidance")
        if any(change.partition("=")[0].strip() == "seed" for change in self.set):
            raise ValueError("the seed of a trained arm is one of the experiment's seeds")
        return self


class Experiment(Config):
    """The content of the file.

    Args:
        protocol: a name of `uhr eval protocols`, or a YAML file; protocol_set: values that are changed.
        prompts, first, references, weights, allow_missing, clip: as the options of `uhr eval run`.
        seeds: of training; each trained arm is trained once with each of them.
        arms: by name; the first is the one that the others are compared with.
    """

    name: str
    about: str = ""
    protocol: str
    protocol_set: tuple[str, ...] = ()
    prompts: str | None = None
    first: int | None = Field(None, ge=1)
    references: str | None = None
    weights: tuple[str, ...] = ()
    allow_missing: bool = False
    clip: str | None = None
    seeds: tuple[int, ...] = (0,)
    arms: dict[str, ExperimentArm]

    @model_validator(mode="after")
    def _sensible(self) -> Experiment:
        if not self.arms:
            raise ValueError("arms is empty: name at least one")
        for name in self.arms:
            if not _NAME.fullmatch(name):
                raise ValueError(f"the arm '{name}' names a folder: use letters, digits, '.', '_' and '-'")
        folded = [name.casefold() for name in self.arms]
        if len(set(folded)) < len(folded):
            raise ValueError("two arms have names that differ in case alone: their folders may be one")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds must be different whole numbers from 0 on")
        return self

    def seeds_of(self, arm: str) -> tuple[int | None, ...]:
        """The training seeds of an arm; one None if it is not trained."""
        return (None,) if self.arms[arm].recipe is None else self.seeds


def read(path: Path) -> Experiment:
    """Read the file of an experiment. Raises UserError if it is not one, or if a recipe cannot be made."""
    path = user_path(path)
    if not path.is_file():
        raise UserError(f"the experiment {path} does not exist", "name its YAML file")
    found = build(Experiment, read_yaml(path), str(path))
    for name, arm in found.arms.items():
        try:
            arm.resolved(found.seeds[0])
        except UserError as error:
            raise UserError(f"{path}, arm '{name}': {error.what}", error.fix, error.give) from error
    return found
