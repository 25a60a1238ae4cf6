"""The interface of optimisers: settings from which a torch optimiser is made."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from uhr.base.kinds import Kind

if TYPE_CHECKING:
    import torch


class Optimiser(Kind):
    """An optimiser and its settings. The learning rate is not among them: each phase sets it."""

    divisible: ClassVar[bool] = False
    """Whether its step is the same on parameters that `runtime.shard` divides among processes."""

    @abstractmethod
    def build(self, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Make it over float32 parameters; the loop sets the learning rate before each step.

        Raises UserError if its package is missing.
        """

    def state_bytes(self) -> float:
        """Bytes of its state for each trained parameter, found by a step on a small matrix on the CPU."""
        import torch

        parameter = torch.nn.Parameter(torch.zeros(128, 128))
        parameter.grad = torch.ones_like(parameter)
        optimiser = self.build([parameter])
        with torch.random.fork_rng(devices=[]):
            optimiser.step()
        tensors = [t for t in optimiser.state[parameter].values() if isinstance(t, torch.Tensor)]
        return sum(t.nbytes for t in tensors if t.numel() >= parameter.numel() // 64) / parameter.numel()

    def log_values(self, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        """Numbers of a built optimiser for the log, after a step."""
        return {}
