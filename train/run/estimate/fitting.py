"""The settings that trade memory for time, and which of them make a run fit a GPU."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from uhr.base.console import command
from uhr.base.formatting import duration, gibibytes
from uhr.models.estimate.devices import DEVICES, Device
from uhr.train.recipes.core.base import RecipeBase

QUANTISED = ("nf4", "int8")
"""The kinds of quantised weights that are tried: both are bitsandbytes', as in plans of sampling."""

PATHS = ("runtime.quantize", "runtime.offload", "runtime.gradient_checkpointing", "batch.micro")
"""The values that are tried. None of them changes which samples a step trains on, or how many."""

AS_FAST = 1.05
"""Settings whose time is within this factor are taken as equally fast: none of them was measured."""


@dataclass(frozen=True)
class Setting:
    """One combination of values, and what the plan of the run says with it.

    changes: to the recipe, as `--set` takes them. total, host: bytes on the device, and of weights on the
    host. seconds: of the whole run. fits: whether the device has that much.
    """

    changes: tuple[str, ...]
    total: int
    host: int
    seconds: float
    fits: bool

    def describe(self) -> str:
        """Memory and time, for people."""
        host = f" and {gibibytes(self.host)} of the host's" if self.host else ""
        return f"{gibibytes(self.total)}{host}, {duration(self.seconds)} in all"

    @property
    def options(self) -> str:
        """The changes as options of a command."""
        flags = [part for change in self.changes for part in ("--set", change)]
        return command(*flags).removeprefix("uhr ") if flags else "the recipe as it is"


def variants(recipe: RecipeBase, keep: Collection[str] = ()) -> Iterator[tuple[tuple[str, ...], RecipeBase]]:
    """The recipe with every valid combination of the values at `PATHS`, the recipe's own first; and the
    changes to it. Values at the paths in `keep` stay as they are.
    """
    runtime, part = recipe.runtime, recipe.trainable
    divided = runtime.shard != "replicate"
    sizes = [n for n in range(1, recipe.batch.size + 1) if recipe.batch.size % n == 0]
    tried: tuple[tuple[Any, ...], ...] = (
        (None, *QUANTISED) if part.quantised_base and not divided else (None,),
        (None, "blocks") if part.removable and not divided else (None,),
        (False, True),
        tuple(sizes),
    )
    own = (runtime.quantize, runtime.offload, runtime.gradient_checkpointing, recipe.batch.micro)
    free = [
        (value,) if path in keep else tuple(dict.fromkeys((value, *others)))
        for path, value, others in zip(PATHS, own, tried, strict=True)
    ]
    for values in itertools.product(*free):
        quantize, offload, checkpointing, micro = values
        if offload is not None and (quantize is not None or runtime.compile or not checkpointing):
            continue
        pairs = zip(PATHS, own, values, strict=True)
        changes = tuple(f"{path}={_text(value)}" for path, before, value in pairs if value != before)
        parts = {"quantize": quantize, "offload": offload, "gradient_checkpointing": checkpointing}
        yield (
            changes,
            recipe.model_copy(
                update={
                    "runtime": runtime.model_copy(update=parts),
                    "batch": recipe.batch.model_copy(update={"micro": micro}),
                }
            ),
        )


def _text(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def settings(
    recipe: RecipeBase,
    measure: Callable[[RecipeBase], tuple[Mapping[str, int], float]],
    gpu: Device,
    keep: Collection[str] = (),
) -> list[Setting]:
    """All settings: those that fit first, the fastest first; then the others, the smallest first.

    Of those that are as fast as the fastest (`AS_FAST`), the plainest is first: with its weights whole and on
    the device, and then the smallest.

    measure: the memory (`memory`) and the seconds of a run.
    """
    found, plain = [], {}
    for changes, changed in variants(recipe, keep):
        sizes, seconds = measure(changed)
        fits = sizes["total"] <= gpu.usable
        each = Setting(changes, sizes["total"], sizes.get("host", 0), seconds, fits)
        found.append(each)
        runtime = changed.runtime
        plain[each] = runtime.offload is not None, runtime.quantize is not None, len(changes), each.total
    fitting = [each for each in found if each.fits]
    limit = AS_FAST * min((each.seconds for each in fitting), default=0.0)
    fast = sorted((each for each in fitting if each.seconds <= limit), key=lambda each: plain[each])
    slow = sorted((each for each in fitting if each.seconds > limit), key=lambda each: each.seconds)
    return [*fast, *slow, *sorted((each for each in found if not each.fits), key=lambda each: each.total)]


def advice(plan: Mapping[str, Any]) -> list[str]:
    """What to change in a run that does not fit the GPU of its plan, or that would be a tenth faster."""
    found = [Setting(**each) for each in plan.get("settings", ())]
    if not found:
        return []
    best, fits, seconds = found[0], plan["gpu"]["fits"], plan["time"]["run"]
    if not best.fits:
        return [no_setting(best)]
    if not best.changes or (fits and seconds < 1.1 * best.seconds):
        return []
    return [f"{'faster' if fits else 'fits'} with {best.options}: {best.describe()}"]


def no_setting(smallest: Setting) -> str:
    """What would fit, in place of a GPU that has too little memory for every setting."""
    larger = min(
        (d for d in DEVICES.values() if d.usable >= smallest.total), key=lambda d: d.memory, default=None
    )
    where = "which no known GPU has" if larger is None else f"which {larger.name} and larger ones have"
    needs = f"no setting fits: the least is {gibibytes(smallest.total)}, {where} ({smallest.options})"
    return f"{needs}; or train at a lower resolution"
