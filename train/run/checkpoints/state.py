"""The state of a training run, and of the process-wide random generators."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from uhr.train.run.checkpoints import optim
from uhr.train.run.checkpoints.average import decay_at
from uhr.train.run.processes.parallel import is_divided, placed_as


@dataclass
class TrainState:
    """The state that changes during a run.

    step: optimiser steps done. parameters: those of the trainable part by their names, float32.
    ema: their moving average under the same names, or None; it is updated once per step.
    constants: frozen tensors that belong to the part. file: name of the part's file in a checkpoint.
    """

    step: int
    parameters: dict[str, torch.nn.Parameter]
    optimiser: torch.optim.Optimizer
    ema: dict[str, torch.Tensor] | None
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    file: str = "adapter"

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Update the average: d * average + (1 - d) * parameter, with d = `decay_at(step, decay)`."""
        assert self.ema is not None
        now = decay_at(self.step, decay)
        for name, average in self.ema.items():
            average.lerp_(self.parameters[name].detach(), 1 - now)

    @property
    def stored(self) -> dict[str, torch.Tensor]:
        """The tensors of the part's file."""
        return {**self.parameters, **self.constants}

    @property
    def divided(self) -> bool:
        """Whether this process has only a part of the parameters."""
        return any(map(is_divided, self.parameters.values()))

    def optimiser_state(self) -> optim.OptimiserState:
        """A copy of the whole state of the optimiser."""
        return optim.optimiser_state(self.optimiser, self.parameters)

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """All state as CPU tensors, by the name of the file that they are saved to."""
        found = {
            self.file: {name: t.detach().to("cpu", copy=True) for name, t in self.stored.items()},
            "optimiser": dict(self.optimiser_state().tensors),
        }
        if self.ema is not None:
            found["ema"] = {name: average.to("cpu", copy=True) for name, average in self.ema.items()}
        return found

    @torch.no_grad()
    def load(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        optimiser_values: Mapping[str, Any],
    ) -> None:
        """Restore what `tensors` returned, bit for bit; asserts that the names are the same.

        optimiser_values: those of `optimiser_state`.
        """
        self.step = step
        copy_into(self.stored, tensors[self.file])
        stored = optim.OptimiserState(tensors["optimiser"], optimiser_values)
        optim.load_optimiser_state(self.optimiser, self.parameters, stored)
        if self.ema is not None:
            copy_into(self.ema, tensors["ema"])


@torch.no_grad()
def copy_into(targets: Mapping[str, torch.Tensor], sources: Mapping[str, torch.Tensor]) -> None:
    """Copy values by name; asserts that the names are the same."""
    assert set(targets) == set(sources), sorted(set(targets) ^ set(sources))[:4]
    for name, target in targets.items():
        target.copy_(placed_as(target, sources[name]))


def seed_everything(seed: int) -> None:
    """Seed the process-wide generators. Our own draws do not use them; a user's objective may."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generators() -> dict[str, Any]:
    """The state of every process-wide generator, as JSON."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": _plain(random.getstate()),
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": [state.numpy().tobytes().hex() for state in torch.cuda.get_rng_state_all()],
    }


def set_generators(state: Mapping[str, Any]) -> None:
    """Restore what `generators` returned. The state of a GPU that is in only one of the two is not
    changed.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_bytes(state["torch"]))
    for device, text in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_bytes(text), device)


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
