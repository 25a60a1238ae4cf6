"""Adapters into the weights, and out again bit for bit."""

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
        """Put the former weights back, bit for bit; the adapters act beside them again."""
        for layer, former in self.layers:
            layer.get_base_layer().weight.data.copy_(former)
            layer.merged_adapters.clear()
        self.layers = []


@torch.no_grad()
def merge(transformer: Any) -> Merged:
    """Add what the active adapters add to the weights; they sleep until `unmerge`.

    The sum is taken in float32 and rounded once to the weight's dtype. Subtracting it again would not give
    the weight back in floating point, so the result holds the former weights. UserError, and nothing changed,
    for an adapter that acts on some tokens only, and for quantised weights.
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
        raise UserError("adapters cannot be merged into quantised weights", "let them act beside these")
    total = weight.float() + sum(peft_layers.delta_weight(layer, name) for name in names)
    merged.layers.append((layer, weight.detach().to("cpu", copy=True)))
    weight.data.copy_(total)
    layer.merged_adapters.extend(names)
