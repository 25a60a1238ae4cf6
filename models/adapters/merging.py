"""Merge adapters into the weights, and undo it bit for bit; fuse one for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.adapters import peft_layers
from uhr.models.adapters.low_rank import Lora

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of weights to which an update can be added."""


@dataclass
class Merged:
    """A model whose adapters are in its weights, and the weights they replaced (on the CPU)."""

    layers: list[tuple[Any, torch.Tensor]]

    def unmerge(self) -> None:
        """Restore the former weights, bit for bit; the adapters are active again."""
        for layer, former in self.layers:
            layer.get_base_layer().weight.data.copy_(former)
            layer.merged_adapters.clear()
        self.layers = []


@torch.no_grad()
def merge(transformer: Any) -> Merged:
    """Add the active adapters' updates to the weights; the adapters are inactive until `unmerge`.

    The sum is computed in float32 and rounded once to the weight's dtype. Subtracting it would not restore
    the weight in floating point, so the result keeps the former weights. Raises UserError, and changes
    nothing, for an adapter that acts on some tokens only, and for quantised weights.
    """
    merged = Merged([])
    try:
        for _, layer in peft_layers.all_layers(transformer):
            _merge_layer(layer, merged)
    except UserError:
        merged.unmerge()
        raise
    return merged


def _merge_layer(layer: Any, merged: Merged) -> None:
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    assert not layer.merged_adapters, "merged twice"
    if not names:
        return
    weight = layer.get_base_layer().weight
    if not weight.is_floating_point():
        raise UserError("adapters cannot be merged into quantised weights", "use them without merging")
    total = weight.float() + sum(peft_layers.delta_weight(layer, name) for name in names)
    merged.layers.append((layer, weight.detach().to("cpu", copy=True)))
    weight.data.copy_(total)
    layer.merged_adapters.extend(names)


@torch.no_grad()
def fuse(transformer: Any, lora: Lora, name: str, where: str) -> bool:
    """Add an adapter's updates to the weights for good, and return whether they are there.

    Each sum is computed in float32 at least and rounded once to the weight's dtype. If one of the weights is
    quantised, none changes: the adapter is added as `name`, active and frozen, and the result is False.
    `where` names the adapter in errors, which are those of `peft_layers.check_fits`.
    """
    peft_layers.check_fits(transformer, lora, where)
    linears = {path: peft_layers.linear_of(transformer.get_submodule(path)) for path in lora}
    if any(linear.weight.dtype not in PLAIN for linear in linears.values()):
        peft_layers.put(transformer, lora, name, where)
        return False
    for path, part in lora.items():
        weight = linears[path].weight
        delta = part.delta().to(weight.device)
        weight.data.copy_(weight.to(delta.dtype) + delta)
    return True
