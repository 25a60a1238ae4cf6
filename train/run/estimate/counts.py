"""The sizes of a backbone and of the part that is trained, counted on torch's meta device.

Those of a published spec are kept in the user's cache: counting takes a second, but importing the real
classes takes ten. An entry is for one version of this code and of the libraries.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uhr.models
import uhr.train
from uhr.base.config import fingerprint
from uhr.base.console import warn
from uhr.base.errors import one_line
from uhr.base.files import user_cache, write_json
from uhr.models.estimate.operations import BackboneCost
from uhr.models.estimate.shapes import empty_component
from uhr.models.specs.spec import ModelSpec
from uhr.train.optimisers import NAMES as OPTIMISERS
from uhr.train.recipes.core.base import Recipe
from uhr.train.run.estimate.memory import BaseSizes, PartSizes
from uhr.train.trainable import NAMES


@dataclass(frozen=True)
class Counts:
    """Sizes of a backbone, what its calls cost, and numbers of the trainable part.

    total: parameters of the backbone with the part. linears: those that have an adapter.
    config: the backbone's configuration.
    """

    base: BaseSizes
    cost: BackboneCost
    part: PartSizes
    total: int
    linears: int
    config: Mapping[str, Any]

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
        sizes, linears = (
            PartSizes(trained, inside, constant, recipe.optimiser.state_bytes()),
            len(all_layers(transformer)),
        )
        return cls(base, cost, sizes, total, linears, json.loads(transformer.to_json_string()))

    @classmethod
    def read(cls, tree: dict[str, Any]) -> Counts:
        """The counts that `dataclasses.asdict` wrote. Raises TypeError or KeyError for anything else."""
        return cls(
            BaseSizes(**tree["base"]),
            BackboneCost(**tree["cost"]),
            PartSizes(**tree["part"]),
            tree["total"],
            tree["linears"],
            tree["config"],
        )


def counts_of_spec(recipe: Recipe, spec: ModelSpec) -> Counts:
    """The counts of a published spec, from the cache if it has them."""
    if recipe.trainable.kind not in NAMES or recipe.optimiser.kind not in OPTIMISERS:
        # a class of the user's, whose code may change
        return Counts.of(recipe, spec, empty_component(spec, "transformer"))
    file = _file(recipe, spec)
    try:
        return Counts.read(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        # missing or damaged: counted again
        found = Counts.of(recipe, spec, empty_component(spec, "transformer"))
    try:
        write_json(file, dataclasses.asdict(found))
    except OSError as error:
        warn(f"the counts of {spec.name} cannot be stored in {file} ({one_line(error)})")
    return found


def _file(recipe: Recipe, spec: ModelSpec) -> Path:
    runtime = recipe.runtime
    key = {
        "code": _code(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "peft")},
        "spec": spec.name,
        "part": recipe.trainable.model_dump(mode="json"),
        "optimiser": recipe.optimiser.model_dump(mode="json"),
        "precision": runtime.precision,
        "quantize": runtime.quantize,
    }
    return user_cache("counts") / f"{fingerprint(key)[:32]}.json"


@functools.cache
def _code() -> str:
    """The hash of the sources on which counts depend."""
    digest = hashlib.sha256()
    for package in (uhr.models, uhr.train):
        for folder in package.__path__:
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.read_bytes())
    return digest.hexdigest()
