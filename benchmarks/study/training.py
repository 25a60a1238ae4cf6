"""Training of the study's small models, and how a figure of several seeds is written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

import torch

from uhr.base.console import progress
from uhr.train.objectives.draws import Draws


class BatchDraws(Draws):
    """Draws of a large batch from one generator: `Draws` makes a generator per sample, for exact resume."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        super().__init__(0, 0, range(count))
        self.generator = generator

    def uniform(self, stream: str) -> torch.Tensor:
        return torch.rand(len(self.places), generator=self.generator, dtype=torch.float64)


def fit(
    what: str,
    parameters: Iterable[torch.nn.Parameter],
    loss: Callable[[], torch.Tensor],
    steps: int,
    lr: float,
) -> None:
    """Minimise a loss by Adam; the learning rate rises over a tenth of the steps and falls to zero."""
    optimiser = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    with progress(what, steps, "steps") as advance:
        for _ in range(steps):
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()
            schedule.step()
            advance()


def rms(values: torch.Tensor) -> float:
    """Root of the mean square."""
    return values.square().mean().sqrt().item()


_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Quantiles 0.975 of Student's t for so many values."""


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval of a figure over seeds; the value alone for one seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3g}"
    half = _T95[min(len(values), 10)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3g} ± {half:.2g}"
