"""Weights kept in the CPU's memory and brought to the GPU when they are needed, through diffusers' hooks."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError, unknown

if TYPE_CHECKING:
    import torch


class Offload(StrEnum):
    """How much is on the GPU at a time: a whole component, a group of layers loaded ahead on a stream of its
    own, or one layer (least memory, slowest)."""

    MODEL = "model"
    GROUP = "group"
    SEQUENTIAL = "sequential"


def check(kind: str, device: torch.device) -> Offload:
    """The kind of that name; UserError for an unknown one, or where there is no GPU to offload from."""
    if kind not in list(Offload):
        raise unknown("offload", kind, list(Offload))
    if device.type == "cpu":
        raise UserError(f"offload '{kind}' keeps weights off a GPU, and the device is cpu", "leave it out")
    return Offload(kind)


def offload(pipeline: Any, kind: Offload, device: torch.device) -> None:
    """Put the hooks on a pipeline whose weights are on the CPU. Adapters go on before, since they are new
    weights. `is_offloaded` says it of a pipeline afterwards."""
    pipeline.offloaded = kind
    if kind is Offload.MODEL:
        pipeline.enable_model_cpu_offload(device=device)
    elif kind is Offload.SEQUENTIAL:
        # a VAE is small, and exact tiling reads its weights past the layers that bring them
        pipeline._exclude_from_cpu_offload = [*pipeline._exclude_from_cpu_offload, "vae"]
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(device, offload_type="leaf_level", use_stream=device.type == "cuda")


def clear(pipeline: Any) -> None:
    """Send back what lies on the GPU, where whole components come and go: a text encoder would stay beside a
    VAE that works before the backbone does."""
    for hook in getattr(pipeline, "_all_hooks", ()):
        hook.offload()


def is_offloaded(pipeline: Any) -> bool:
    """Whether a pipeline's weights are elsewhere between its calls."""
    return getattr(pipeline, "offloaded", None) is not None


def tiling_memory(pipeline: Any) -> int:
    """Bytes for a pass of a loaded pipeline's VAE."""
    import torch

    from uhr.models.vae.budget import device_budget, host_budget

    device = torch.device(pipeline._execution_device)
    if device.type != "cuda":
        return host_budget()
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights = 0 if is_offloaded(pipeline) else sum(_bytes(part) for part in parts)
    return device_budget(torch.cuda.get_device_properties(device).total_memory, weights)


def _bytes(part: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in part.parameters())
