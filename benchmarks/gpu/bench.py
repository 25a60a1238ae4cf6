"""The context of a run, and how it continues if one measurement fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from benchmarks.gpu.aims import OUT_OF_MEMORY
from benchmarks.gpu.clock import Budget, Clock
from benchmarks.gpu.report import Row, Table
from benchmarks.gpu.shapes import Models, Shape
from uhr.base.console import warn

T = TypeVar("T")

RATE = {"cuda": 5e14, "cpu": 2e10}
"""Operations a second, for an estimate before anything similar was measured: an H200's in bfloat16, and one
CPU core's in float32."""


@dataclass
class Bench:
    """One run: the shape, the sizes, the table, and how long anything may take."""

    shape: Shape
    models: Models
    sizes: Sequence[str]
    table: Table
    clock: Clock
    budget: Budget
    limit: float
    """Seconds that one image, or one call, may take; beyond, it is extrapolated or left out."""

    rounds: int
    samplers: Sequence[str]
    """Those to be measured, all if none is named."""

    compiled: bool
    """Measure with compiled blocks, too."""

    def left_out(self, part: str, what: str, size: str, variant: str, seconds: float) -> bool:
        """Whether work of so many seconds is too much; says so in the table."""
        text = f"left out: some {seconds:.3g} s by count of operations"
        if seconds > self.limit:
            text += f", the limit is {self.limit:.3g} s"
        elif seconds > self.budget.left:
            text += f", {max(0.0, self.budget.left):.0f} s of the budget are left"
        else:
            return False
        self.table.add(Row(part, what, size, variant, None, text))
        return True

    def attempt(self, part: str, what: str, size: str, variant: str, work: Callable[[], T]) -> T | None:
        """`work()`; a row in its place where it runs out of memory, or fails, and None."""
        try:
            return work()
        except torch.OutOfMemoryError as error:
            warn(f"{part} {what} {size}, {variant}: {' '.join(str(error).split())}")
            how, failed = OUT_OF_MEMORY, False
        except RuntimeError as error:
            # an unattended run continues with the next measurement; the row makes it fail at the end
            traceback.print_exc()
            how, failed = f"failed: {_first_line(error)}", True
        # past the except: a traceback holds every tensor of its frames
        self.clock.clear()
        self.table.add(Row(part, what, size, variant, None, how, failed=failed))
        return None

    def judged(self, flops: float, rate: float | None = None) -> float:
        """Return an estimate of the seconds that these operations will take."""
        return flops / (rate or RATE[self.shape.device.type])


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
