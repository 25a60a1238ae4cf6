"""On which other GPUs a run fits that does not fit the one that is planned for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from uhr.base.config import apply_sets, build
from uhr.base.errors import UserError
from uhr.models.estimate.devices import DEVICES, Device
from uhr.models.specs.spec import ModelSpec
from uhr.train.recipes.core.base import RecipeBase
from uhr.train.run.estimate.cost import CostOf
from uhr.train.run.estimate.memory import Processes

WORKERS = (2, 4, 8)
"""Numbers of GPUs of one machine over which weights are divided."""

DIVIDED = "runtime.shard=full"


@dataclass(frozen=True)
class GpuChoice:
    """GPUs that a run fits.

    changes: to the recipe, as `--set` takes them. workers: processes, of one `gpu` each. memory: bytes on
    each. seconds: of the whole run.
    """

    changes: tuple[str, ...]
    gpu: str
    workers: int
    memory: int
    seconds: float


def other_gpus(
    recipe: RecipeBase, spec: ModelSpec, processes: Processes, gpu: Device, cost: CostOf
) -> list[GpuChoice]:
    """Several of the GPU that divide the weights, and the smallest larger one that fits the recipe as it is,
    or several of that if none does alone.
    """
    larger = sorted((each for each in DEVICES.values() if each.memory > gpu.memory), key=lambda e: e.memory)
    found = _divided(recipe, spec, processes, gpu, cost)
    for each in larger:
        priced = cost(recipe, processes, each)
        if priced.memory["total"] <= each.usable:
            whole = GpuChoice((), each.name, processes.workers, priced.memory["total"], priced.run(recipe))
            return [*found, whole]
    for each in larger:
        if several := _divided(recipe, spec, processes, each, cost):
            return [*found, *several]
    return found


def _divided(
    recipe: RecipeBase, spec: ModelSpec, processes: Processes, gpu: Device, cost: CostOf
) -> list[GpuChoice]:
    """The fewest GPUs that fit the recipe with divided weights, with the largest micro-batch."""
    for count in WORKERS:
        if count < processes.workers or count % processes.machines or recipe.batch.size % count:
            continue
        there = Processes(count, processes.machines)
        for changes in _smaller(recipe, there):
            changed = _changed(recipe, spec, changes)
            if changed is None:
                continue
            priced = cost(changed, there, gpu)
            if priced.memory["total"] <= gpu.usable:
                return [GpuChoice(changes, gpu.name, count, priced.memory["total"], priced.run(changed))]
    return []


def _smaller(recipe: RecipeBase, processes: Processes) -> Iterator[tuple[str, ...]]:
    """Changes that divide the weights and save activations, the least first."""
    yield (DIVIDED,)
    again = () if recipe.runtime.gradient_checkpointing else ("runtime.gradient_checkpointing=true",)
    if again:
        yield (DIVIDED, *again)
    micro = min(recipe.batch.micro, processes.samples(recipe)) // 2
    while micro:
        yield (DIVIDED, *again, f"batch.micro={micro}")
        micro //= 2


def _changed(recipe: RecipeBase, spec: ModelSpec, changes: tuple[str, ...]) -> RecipeBase | None:
    """The recipe with changes; None if it does not allow them."""
    try:
        changed = build(type(recipe), apply_sets(recipe.model_dump(mode="json"), list(changes)), "a plan")
        changed.check(spec)
    except UserError:
        return None
    return changed
