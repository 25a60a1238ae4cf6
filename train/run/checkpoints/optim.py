"""The optimiser's learning rate, and its whole state by the names of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.train.run.processes.parallel import is_divided, placed_as

METADATA = "uhr_optimiser"
"""The key in the metadata of `optimiser.safetensors` for `OptimiserState.values`, as JSON."""

_GROUPS = "param_groups"


@dataclass(frozen=True)
class OptimiserState:
    """The state of an optimiser: tensors, on the CPU, and values that are JSON.

    tensors: by `<parameter>.<name>`, and `param_groups.<number>.<name>` for those of groups.
    values: {"state": {parameter: {name: value}}, "groups": [{name: value}]}; empty for the checkpoint of an
    earlier version, whose optimiser has none.
    """

    tensors: Mapping[str, torch.Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr


def optimiser_state(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], copied: bool = True
) -> OptimiserState:
    """Return the whole state. Raises UserError for a part of it that is neither tensor nor JSON.

    copied: the tensors are copies on the CPU; otherwise the optimiser's own, divided as the parameters are.
    """
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {"state": {}, "groups": []}
    for key, parameter in parameters.items():
        own = _divide(optimiser.state.get(parameter, {}), key, tensors, copied)
        if own:
            values["state"][key] = own
    for number, group in enumerate(optimiser.param_groups):
        options = {name: value for name, value in group.items() if name != "params"}
        values["groups"].append(_divide(options, f"{_GROUPS}.{number}", tensors, copied))
    return OptimiserState(tensors, values)


def _divide(
    state: Mapping[str, Any], key: str, tensors: dict[str, torch.Tensor], copied: bool
) -> dict[str, Any]:
    """Add the tensors of a mapping to `tensors`, and return its other values."""
    values = {}
    for name, value in state.items():
        if not copied and (type(value) is torch.Tensor or is_divided(value)):
            tensors[f"{key}.{name}"] = value
        elif type(value) in (torch.Tensor, torch.nn.Parameter):
            tensors[f"{key}.{name}"] = value.detach().to("cpu", copy=True).contiguous()
        elif _is_plain(value):
            values[name] = value
        else:
            what = f"the optimiser's '{name}' of {key} is a {type(value).__name__}"
            raise UserError(f"{what}, which no checkpoint can contain", "use another optimiser")
    return values


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def load_optimiser_state(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], stored: OptimiserState
) -> None:
    """Restore what `optimiser_state` returned, bit for bit."""
    values = stored.values.get("state", {})
    for key, parameter in parameters.items():
        own = _of(stored.tensors, key)
        # counters have no shape and stay where the optimiser keeps them: on the CPU
        state = {name: placed_as(parameter, t.clone()) if t.ndim else t.clone() for name, t in own.items()}
        if state or key in values:
            optimiser.state[parameter] = {**state, **values.get(key, {})}
    for number, (group, found) in enumerate(
        zip(optimiser.param_groups, stored.values.get("groups", ()), strict=False)
    ):
        # JSON has no tuples
        plain = {name: tuple(v) if isinstance(group.get(name), tuple) else v for name, v in found.items()}
        group.update(plain, **{n: t.clone() for n, t in _of(stored.tensors, f"{_GROUPS}.{number}").items()})


def _of(tensors: Mapping[str, torch.Tensor], key: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(f"{key}."): t for name, t in tensors.items() if name.startswith(f"{key}.")}
