"""An ordinary LoRA whose product is added to the linear's output in one operation.

peft computes W x + (B (A x)) scale by a product, a multiplication and a sum, each over the whole output,
forward and backward. `addmm` does the same in one call, with the scale on the narrow side. Adapter and output
must have one dtype; otherwise, as with a float32 adapter on bfloat16 weights, peft's own operations remain,
without a multiplication by 1.
"""

from __future__ import annotations

from typing import Any

import torch

from uhr.models.adapters import peft_layers
from uhr.models.adapters.low_rank import LowRank
from uhr.models.adapters.peft_layers import Variant


class Added(Variant):
    """Add (alpha / rank) B A x: what peft does without a variant, up to rounding."""

    def forward(
        self, module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        a, b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        scale = module.scaling[active_adapter]
        narrow = a(x)
        if narrow.dtype != result.dtype:
            wide = b(narrow)
            return result + (wide if scale == 1 else wide * scale)
        sums = torch.addmm(result.flatten(0, -2), narrow.flatten(0, -2), b.weight.t(), alpha=scale)
        return sums.view(result.shape)

    def delta(self, module: Any, name: str) -> torch.Tensor:
        return self.low_rank(module, name).delta()

    def low_rank(self, module: Any, name: str) -> LowRank:
        return peft_layers.ordinary(module, name)


def add_at_once(model: Any, name: str) -> None:
    """Let an ordinary LoRA on the model be added in one operation."""
    peft_layers.attach(peft_layers.layers_of(model, name), name, Added())
