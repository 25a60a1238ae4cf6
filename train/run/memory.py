"""What a run keeps on the device, by part, counted from shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from uhr.models.estimate.devices import Device
from uhr.models.estimate.weights import weight_bytes
from uhr.models.loading.stream import blocks_of
from uhr.models.specs.spec import ModelSpec
from uhr.train.recipes.base import Recipe

WORK_PER_TOKEN = 24
"""Numbers per token and channel that one transformer block keeps for its backward pass: normalised inputs,
q, k, v before and after normalisation and rotation, attention output, and a feed-forward four times as wide,
twice."""


@dataclass(frozen=True)
class BaseSizes:
    """Sizes of a backbone before the trainable part is added.

    parameters: their number. weights: bytes as they are loaded. streamed, largest: bytes of all blocks, and
    of the largest. linear: bytes of the largest linear layer in the precision of the run.
    """

    parameters: int
    weights: int
    streamed: int
    largest: int
    linear: int
    blocks: int
    width: int

    @classmethod
    def of(cls, recipe: Recipe, spec: ModelSpec, transformer: Any) -> BaseSizes:
        """Count them on a transformer that may have no weights."""
        dtype = getattr(torch, recipe.runtime.precision)
        blocks = blocks_of(transformer, (spec.double_block, spec.single_block))
        sizes = [weight_bytes(block, dtype).whole for block in blocks]
        linears = (m.weight.numel() for m in transformer.modules() if isinstance(m, torch.nn.Linear))
        return cls(
            sum(p.numel() for p in transformer.parameters()),
            weight_bytes(transformer, dtype, recipe.runtime.quantize).whole,
            sum(sizes),
            max(sizes),
            dtype.itemsize * max(linears),
            len(blocks),
            transformer.inner_dim,
        )


def memory(
    recipe: Recipe, base: BaseSizes, trained: int, inside: int, constant: int, tokens: int
) -> dict[str, int]:
    """Estimate the bytes on the device at the longest sequence, and those of the host's copies.

    weights: the backbone as it is loaded; with offload what is not in blocks, and two blocks. teacher: its
    second copy, if an objective needs one. dequantised: the largest linear layer, computed with.
    trained: float32 values (of a weight that the backbone has in float32, they are that weight). gradients:
    float32. optimiser: its state. average: if there is one. constant: tensors that belong to the part.
    activations: each block's input, and the tensors kept by the block being differentiated (by all blocks
    without gradient checkpointing).
    total: the sum. host: weights in the host's pinned memory, which is not in the sum.

    Args:
        trained: number of trained parameters. inside: how many of them are the backbone's own.
        constant: number of constant ones. tokens: of the longest sequence.
    """
    runtime = recipe.runtime
    width = getattr(torch, runtime.precision).itemsize
    per_block = recipe.batch.micro * tokens * base.width * width
    at_work = 1 if runtime.gradient_checkpointing else base.blocks
    streamed = runtime.offload is not None
    sizes = {
        "weights": base.weights - base.streamed + 2 * base.largest if streamed else base.weights,
        "teacher": base.weights if recipe.second_model else 0,
        "dequantised": 0 if runtime.quantize is None else base.linear,
        "trained": 4 * (trained if width < 4 else trained - inside),
        "gradients": 4 * trained,
        "optimiser": round(recipe.optimiser.state_bytes() * trained),
        "average": 4 * trained if recipe.ema is not None else 0,
        "constant": 4 * constant,
        "activations": per_block * (base.blocks + WORK_PER_TOKEN * at_work),
    }
    return {**sizes, "total": sum(sizes.values()), "host": base.streamed if streamed else 0}


def fit(sizes: dict[str, int], device: Device) -> dict[str, Any]:
    """Whether the estimated memory fits a GPU, as plain values."""
    return {
        "name": device.name,
        "title": device.title,
        "memory": device.memory,
        "usable": device.usable,
        "fits": sizes["total"] <= device.usable,
    }
