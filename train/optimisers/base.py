"""The interface of optimisers: settings from which a torch optimiser is made."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from uhr.base.kinds import Kind

if TYPE_CHECKING:
    import torch


class Optimiser(Kind):
    """An optimiser and its settings. The learning rate is not among them: each phase sets it."""

    @abstractmethod
    def build(self, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Make it over float32 parameters, with a learning rate of 0 that the loop sets before each step.

        Raises UserError if its package is missing.
        """

    def log_values(self, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        """Numbers of a built optimiser for the log, after a step."""
        return {}
