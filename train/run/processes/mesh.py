"""How processes divide weights (`runtime.shard`) and a global batch. A plan needs it without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from uhr.base.errors import UserError, unknown
from uhr.train.recipes.core.base import Batching, RecipeBase

Mode = Literal["replicate", "hybrid", "full"]


def mesh_shape(mode: str, world: int, local_world: int) -> tuple[int, ...]:
    """The shape of the device mesh of `world` processes, of which this machine has `local_world`: (copies,
    parts) for `hybrid`, (parts,) for `full`.

    Raises UserError for another mode, and for `hybrid` on machines with different numbers of processes.
    """
    if mode == "full":
        return (world,)
    if mode == "hybrid":
        if world % local_world:
            what = f"{world} processes are not a multiple of the {local_world} of this machine"
            raise UserError(what, "set runtime.shard=full")
        return (world // local_world, local_world)
    raise unknown("way to divide", mode, get_args(Mode), "runtime.shard")


@dataclass(frozen=True)
class Accumulation:
    """How `workers` processes compute a global batch of `size` samples, whose number does not depend on
    theirs: each takes `samples` of them in `passes` forward passes of at most `micro`, whose gradients are
    accumulated.
    """

    size: int
    workers: int
    samples: int
    passes: int
    micro: int

    @classmethod
    def of(cls, batch: Batching, workers: int) -> Accumulation:
        """Raises UserError if the batch cannot be divided equally, with the nearest sizes and numbers of
        processes that work."""
        if batch.size % workers:
            counts = [count for count in range(1, batch.size + 1) if batch.size % count == 0]
            near = _around(workers, counts)
            sizes = _around(batch.size, range(workers, batch.size + workers + 1, workers))
            what = f"batch.size is {batch.size} in all, and {workers} processes cannot share it equally"
            more = f"--set batch.size={' or '.join(map(str, sizes))}"
            one = near[-1] == 1
            raise UserError(
                what, f"take {' or '.join(map(str, near))} process{'' if one else 'es'}, or {more}"
            )
        samples = batch.size // workers
        micro = min(batch.micro, samples)
        return cls(batch.size, workers, samples, -(-samples // micro), micro)

    def describe(self) -> str:
        """Return it as one line."""
        who = "1 process" if self.workers == 1 else f"{self.workers} processes"
        passes = f"{self.passes} pass{'' if self.passes == 1 else 'es'}"
        most = "" if self.samples % self.micro == 0 else "at most "
        return f"batch: {self.size} = {who} x {self.samples}, in {passes} of {most}{self.micro}"


def _around(value: int, choices: Sequence[int]) -> list[int]:
    """The nearest of `choices` below and above a value that is not among them, without those missing."""
    below = [choice for choice in choices if choice < value]
    above = [choice for choice in choices if choice > value]
    return [*below[-1:], *above[:1]]


def divides(recipe: RecipeBase) -> bool:
    """Whether the recipe divides weights."""
    return recipe.runtime.shard != "replicate"
