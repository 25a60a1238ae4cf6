"""float32 copies of trained weights that the model computes with in a lower precision."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch


class Masters:
    """The float32 values that are trained, for parameters of any precision.

    A bfloat16 weight has 8 significant bits, so an update below 1/512 of it is lost: at a learning rate of
    1e-6 almost all of them. Optimiser, average and checkpoint therefore work on float32 copies, which
    `publish` rounds into the model. Each gradient is added to its copy's as soon as it is complete, in
    float32, and then freed: micro-batches are summed without rounding.

    parameters: the float32 values by name; a parameter that is float32 in the model is its own.
    """

    def __init__(self, live: Mapping[str, torch.nn.Parameter]) -> None:
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self._pairs: list[tuple[torch.nn.Parameter, torch.nn.Parameter]] = []
        for name, parameter in live.items():
            if parameter.dtype == torch.float32:
                self.parameters[name] = parameter
                continue
            master = torch.nn.Parameter(parameter.detach().float())
            parameter.register_post_accumulate_grad_hook(partial(_take_gradient, master))
            self.parameters[name] = master
            self._pairs.append((parameter, master))

    @torch.no_grad()
    def publish(self) -> None:
        """Round the float32 values into the model. Call it whenever they changed."""
        for parameter, master in self._pairs:
            parameter.copy_(master)


def _take_gradient(master: torch.nn.Parameter, parameter: torch.nn.Parameter) -> None:
    assert parameter.grad is not None
    gradient = parameter.grad.float()
    master.grad = gradient if master.grad is None else master.grad.add_(gradient)
    parameter.grad = None
