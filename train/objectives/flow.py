"""Conditional flow matching: predict the velocity from data to noise (Lipman et al. 2210.02747)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uhr.train.objectives.base import Batch, Denoiser, Errors, Objective

if TYPE_CHECKING:
    from uhr.train.objectives.draws import Draws


class Flow(Objective):
    """|| v(x_sigma, sigma, c) - (e - x) ||^2 with x_sigma = (1 - sigma) x + sigma e, e ~ N(0, I).

    Computed in float32 whatever dtype the model uses.
    """

    kind: str = "flow"

    def __call__(self, denoiser: Denoiser, batch: Batch, draws: Draws) -> Errors:
        predicted = denoiser.velocity(batch.noisy, batch.sigma, batch.condition).float()
        return Errors((predicted - batch.target).square())
