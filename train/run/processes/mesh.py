"""Into how many parts, and copies, `runtime.shard` divides weights. A plan needs it without torch."""

from __future__ import annotations

from typing import Literal, get_args

from uhr.base.errors import UserError, unknown
from uhr.train.recipes.core.base import RecipeBase

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


def divides(recipe: RecipeBase) -> bool:
    """Whether the recipe divides weights."""
    return recipe.runtime.shard != "replicate"
