"""Plain low-rank adapters through peft: add them to a model for training, and read their tensors.

An adapter adds (alpha / rank) B A to a frozen weight W [out, in], with A [rank, in] and B [out, rank]. Its
weights are float32 whatever the backbone's dtype is: in half precision small updates would be lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.adapters import peft_layers

ADAPTER = "default"
"""Name of the adapter that training adds."""


@dataclass(frozen=True)
class LoraSpec:
    """A plain LoRA: `targets` are module suffixes (of `lora_target_sets`), `alpha` is by default `rank`."""

    rank: int
    targets: tuple[str, ...]
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"LoRA rank {self.rank}", "use a rank of at least 1")
        if self.alpha is None:
            object.__setattr__(self, "alpha", float(self.rank))

    @property
    def scale(self) -> float:
        """The factor alpha / rank on B A."""
        assert self.alpha is not None
        return self.alpha / self.rank

    def peft_config(self) -> Any:
        from peft import LoraConfig

        alpha: Any = self.alpha  # peft's annotation is too narrow
        return LoraConfig(
            r=self.rank,
            lora_alpha=alpha,
            target_modules=list(self.targets),
            init_lora_weights="gaussian",
        )


def add_lora(transformer: Any, lora: LoraSpec, seed: int, name: str = ADAPTER) -> list[torch.nn.Parameter]:
    """Freeze the backbone, add an adapter, and return its parameters, float32 and trainable.

    A is Gaussian (standard deviation 1 / rank) from `seed`, B is zero: the first output is the backbone's
    own. Raises UserError for a target that no module ends in.
    """
    suffixes = {suffix: f".{suffix}" for suffix in lora.targets}
    modules = [f".{path}" for path, _ in transformer.named_modules()]
    for suffix, ending in suffixes.items():
        if not any(path.endswith(ending) for path in modules):
            raise UserError(
                f"LoRA target '{suffix}' matches no module of the {type(transformer).__name__}", "drop it"
            )
    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(lora.peft_config(), adapter_name=name)
    return _own_parameters(transformer, name)


def _own_parameters(transformer: Any, name: str) -> list[torch.nn.Parameter]:
    """Convert the adapter's parameters to float32 and return them in module order."""
    found = []
    for _, layer in peft_layers.all_layers(transformer):
        for weights in (layer.lora_A, layer.lora_B):
            if name in weights:
                weights[name].float()
                found += list(weights[name].parameters())
    return found


def lora_state(
    transformer: Any, name: str = ADAPTER, state_dict: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Return copies of the adapter's tensors on the CPU.

    They are `<module>.lora_A.weight` [rank, in] and `<module>.lora_B.weight` [out, rank]. If the module is
    sharded, pass the gathered `state_dict`.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(transformer, state_dict=state_dict, adapter_name=name)
    return {key: tensor.detach().cpu().clone() for key, tensor in state.items()}
