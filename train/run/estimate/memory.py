"""What each process of a run keeps on its device, by part, counted from shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uhr.base.errors import UserError
from uhr.models.estimate.weights import weight_bytes
from uhr.models.specs.spec import ModelSpec
from uhr.train.encode.stored.tensors import BYTES
from uhr.train.recipes.core.base import Recipe, RecipeBase
from uhr.train.run.processes.mesh import Accumulation, divides, mesh_shape

WORK_PER_TOKEN = 24
"""Numbers per token and channel that one transformer block keeps for its backward pass: normalised inputs,
q, k, v before and after normalisation and rotation, attention output, and a feed-forward four times as wide,
twice."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run: `workers` in all, as many on each of `machines`."""

    workers: int = 1
    machines: int = 1

    def __post_init__(self) -> None:
        if self.workers % self.machines:
            what = f"{self.workers} processes are not a multiple of {self.machines} machines"
            raise UserError(what, give={"workers": str(self.machines)})

    def parts(self, recipe: RecipeBase) -> int:
        """Into how many parts `runtime.shard` divides each weight."""
        if not divides(recipe):
            return 1
        return mesh_shape(recipe.runtime.shard, self.workers, self.workers // self.machines)[-1]

    def samples(self, recipe: RecipeBase) -> int:
        """The samples of a global batch that one process computes."""
        return self.accumulation(recipe).samples

    def accumulation(self, recipe: RecipeBase) -> Accumulation:
        """How the processes share a batch. Raises UserError if they cannot do so equally."""
        return Accumulation.of(recipe.batch, self.workers)


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
        import torch

        from uhr.models.loading.stream import blocks_of

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

    @property
    def at_work(self) -> int:
        """Bytes of two blocks, and of what is in none: what a device has while weights are elsewhere."""
        return self.weights - self.streamed + 2 * self.largest


@dataclass(frozen=True)
class PartSizes:
    """Numbers of parameters of the trainable part.

    trained: all that are trained. inside: how many of them are the backbone's own. constant: of tensors that
    belong to the part.
    """

    trained: int
    inside: int
    constant: int


def memory(
    recipe: Recipe, base: BaseSizes, part: PartSizes, tokens: int, processes: Processes
) -> dict[str, int]:
    """Estimate the bytes on the device of one process at the longest sequence, and of the host's copies.

    weights: the backbone as it is loaded; with offload what is not in blocks, and two blocks; divided, one
    part of what is frozen. gathered: where weights are divided, what is gathered while it computes, and its
    gradients before they are divided. teacher: the second copy, if an objective needs one. dequantised: the
    largest linear layer, computed with. trained: float32 values (of a weight that the backbone has in
    float32, they are that weight). gradients: float32. optimiser: its state. average: if there is one.
    constant: tensors that belong to the part. activations: each block's input, and the tensors kept by the
    block being differentiated (by all blocks without gradient checkpointing).
    total: the sum. host: weights in the host's pinned memory, which is not in the sum.

    Args:
        tokens: of the longest sequence.
    """
    runtime = recipe.runtime
    width = BYTES[runtime.precision]
    micro = min(recipe.batch.micro, processes.samples(recipe))
    per_block = micro * tokens * base.width * width
    blocks = 1 if runtime.gradient_checkpointing else base.blocks
    passes = max(phase.objective_of(use).passes for phase in recipe.phases for use in phase.data)
    parts, divided = processes.parts(recipe), divides(recipe)
    # an adapter is whole in every process
    own = parts if divided and recipe.trainable.divisible else 1
    streamed = runtime.offload is not None
    weights, values, gathered = (
        base.weights,
        4 * (part.trained if width < 4 else part.trained - part.inside),
        0,
    )
    if streamed:
        weights = base.at_work
    if divided:
        weights, values = (base.weights - width * part.inside) // parts, 4 * part.trained // own
        # of one block in the run's precision, and in float32 for the sum
        gradients = base.largest * (width + 4) // width if recipe.trainable.divisible else 0
        gathered = base.at_work + gradients
    sizes = {
        "weights": weights,
        "gathered": gathered,
        "teacher": base.weights // parts if recipe.second_model else 0,
        "dequantised": 0 if runtime.quantize is None else base.linear,
        "trained": values,
        "gradients": 4 * part.trained // own,
        "optimiser": round(recipe.optimiser.state_bytes() * part.trained) // own,
        "average": 4 * part.trained // own if recipe.ema is not None else 0,
        "constant": 4 * part.constant,
        "activations": per_block * passes * (base.blocks + WORK_PER_TOKEN * blocks),
    }
    return {**sizes, "total": sum(sizes.values()), "host": base.streamed if streamed else 0}
