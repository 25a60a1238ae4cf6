"""What a run needs: memory of each process, and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uhr.models.estimate.devices import Device
from uhr.train.recipes.core.base import RecipeBase
from uhr.train.run.estimate.memory import Processes


@dataclass(frozen=True)
class Cost:
    """memory: bytes on the device of each process, by what they are, with their `total`, and those on the
    `host`, which are not in it. steps: seconds of each phase's mean step; empty if no GPU is named.
    """

    memory: Mapping[str, int]
    steps: Mapping[str, float]

    def run(self, recipe: RecipeBase) -> float:
        """Seconds of all steps."""
        return sum(phase.steps * self.steps[phase.name] for phase in recipe.phases)

    def fit(self, gpu: Device) -> dict[str, Any]:
        """Whether the memory fits a GPU, as plain values."""
        return {
            "name": gpu.name,
            "title": gpu.title,
            "memory": gpu.memory,
            "usable": gpu.usable,
            "fits": self.memory["total"] <= gpu.usable,
        }


CostOf = Callable[[RecipeBase, Processes, Device | None], Cost]
"""The cost of a recipe, of which values that trade memory for time were changed, in some processes on a
GPU."""
