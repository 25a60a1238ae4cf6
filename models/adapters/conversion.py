"""Convert adapters on a model, or a checkpoint's tensors, to one plain LoRA, exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from uhr.models.adapters import peft_layers
from uhr.models.adapters.low_rank import LowRank, total
from uhr.models.adapters.minor import START, difference, state_factors


def lora_of(transformer: Any, names: Iterable[str] | None = None) -> dict[str, LowRank]:
    """Return one plain LoRA, exactly the sum of these adapters (all active ones if None) at their scales.

    Ranks add up: a minor adapter counts twice its rank, and URAE's 4K over its 2K LoRA is rank 48, in the
    order of the official converter if the minor one is named first. Raises UserError for a token-masked
    adapter.
    """
    names = list(peft_layers.active(transformer) if names is None else names)
    parts: dict[str, list[LowRank]] = {}
    for name in names:
        for path, layer in peft_layers.layers_of(transformer, name).items():
            parts.setdefault(path, []).append(peft_layers.low_rank(layer, name))
    return {path: total(found) for path, found in parts.items()}


def lora_of_state(state: Mapping[str, torch.Tensor], alpha: float | None = None) -> dict[str, LowRank]:
    """Return a plain LoRA from the tensors of `plain.lora_state` (or an average of them), without a model.

    `alpha` of an ordinary LoRA is its rank if None; a minor adapter has none and becomes twice its rank.
    """
    if any(key.endswith(f".{START}") for key in state):
        trained, starts = state_factors(state)
        return {path: difference(trained[path], starts[path]) for path in trained}
    lora = {}
    for key, a in state.items():
        if key.endswith(".lora_A.weight"):
            path = key.removesuffix(".lora_A.weight")
            b = state[f"{path}.lora_B.weight"]
            lora[path] = LowRank(a, b, float(a.shape[0]) if alpha is None else alpha)
    assert 2 * len(lora) == len(state), "the state has other tensors than A and B"
    return lora
