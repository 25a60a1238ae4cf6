"""The optimiser, its learning rate, and its state by the adapter's parameter names."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from uhr.train.recipes.base import AdamW


def build(config: AdamW, parameters: Mapping[str, torch.nn.Parameter]) -> torch.optim.AdamW:
    """Create the optimiser over `parameters`; `set_lr` sets the learning rate before every step."""
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
    """The state's tensors on the CPU, by `<parameter>.<name>`; empty before the first step."""
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
    """Restore what `optimiser_state` returned, bit for bit."""
    for key, parameter in parameters.items():
        own = {name.removeprefix(f"{key}."): t for name, t in state.items() if name.startswith(f"{key}.")}
        # counters have no shape and stay where the optimiser keeps them: on the CPU
        optimiser.state[parameter] = {
            name: tensor.clone().to(parameter.device) if tensor.ndim else tensor.clone()
            for name, tensor in own.items()
        }
