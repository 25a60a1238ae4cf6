"""Merge adapters into the weights, and undo it bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.adapters import peft_layers


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
