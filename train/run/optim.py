"""The optimiser, its learning rate, and its state under the adapter's own names."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from uhr.train.recipes.base import AdamW


def build(config: AdamW, parameters: Mapping[str, torch.nn.Parameter]) -> torch.optim.AdamW:
    """The optimiser over `parameters`; the learning rate is set before every step."""
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=0.0,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr


def optimiser_state(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Every tensor of the state as `<parameter>.<name>`, on the CPU; empty before the first step."""
    return {
        f"{key}.{name}": value.detach().cpu().clone()
        for key, parameter in parameters.items()
        for name, value in optimiser.state.get(parameter, {}).items()
    }


def load_optimiser_state(
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    state: Mapping[str, torch.Tensor],
) -> None:
    """Write what `optimiser_state` gave back, bit for bit."""
    for key, parameter in parameters.items():
        own = {name.removeprefix(f"{key}."): t for name, t in state.items() if name.startswith(f"{key}.")}
        # counters have no shape and stay where the optimiser keeps them: on the CPU
        optimiser.state[parameter] = {
            name: tensor.clone().to(parameter.device) if tensor.ndim else tensor.clone()
            for name, tensor in own.items()
        }
