"""Divides the weights of a model among the processes of a run (FSDP2), by `runtime.shard`.

    replicate  every process has all weights; `Ranks.sum_gradients` sums the gradients of the trained part
    full       each process has 1/world of each weight; a block's are gathered while it computes
    hybrid     they are divided among the processes of a machine, and every machine has all

An adapter is small: each process has the whole of it in every mode, and only the frozen backbone is divided.
Then no step gathers adapters, and their checkpoints are the same files in every mode. A backbone that is
trained is divided with its optimiser and average, in float32; blocks compute in the recipe's precision.
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import nn

from uhr.train.recipes.core.base import Recipe
from uhr.train.run.processes.mesh import mesh_shape
from uhr.train.run.processes.parallel import Ranks, backend_of


def divide_all(
    transformer: nn.Module, frozen: nn.Module | None, recipe: Recipe, ranks: Ranks, device: torch.device
) -> None:
    """Divide the model that is trained, and the frozen copy that is its teacher if there is one."""
    mode, precision = recipe.runtime.shard, getattr(torch, recipe.runtime.precision)
    part = recipe.trainable
    kept = set() if part.divisible else set(part.parameters(transformer).values())
    divide(transformer, kept, ranks, mode, device, precision)
    if frozen is not None:
        divide(frozen, set(), ranks, mode, device, precision)


def divide(
    model: nn.Module,
    trained: set[nn.Parameter],
    ranks: Ranks,
    mode: str,
    device: torch.device,
    precision: torch.dtype,
) -> None:
    """Divide a model in place, block by block and then what is left; call it after every surgery.

    trained: the parameters that each process keeps whole. Other parameters that require a gradient become
        float32. device: where the parts go. precision: that of the computation.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    shape = mesh_shape(mode, ranks.world, ranks.local_world)
    if not dist.is_initialized():
        # a single process has a group of its own, so that it runs the same code
        dist.init_process_group(backend_of(device), store=dist.HashStore(), rank=0, world_size=1)
    names = ("copies", "parts")[-len(shape) :]
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    # inputs stay as the denoiser made them: position ids need float32
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # no block's output is changed in place
    policy = MixedPrecisionPolicy(
        param_dtype=precision, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    blocks = [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]
    for module in (*blocks, model):
        for parameter in module.parameters():
            if parameter.requires_grad and parameter not in trained:
                parameter.data = parameter.data.float()
        fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=trained)
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # losses are divided by the size of the global batch already
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
