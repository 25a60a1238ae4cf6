"""Keep weights in the CPU's memory and move them to the GPU when they are needed, by diffusers' hooks."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from uhr.base.errors import UserError, unknown

if TYPE_CHECKING:
    import torch


class Offload(StrEnum):
    """What is on the GPU at a time: a whole component, a group of layers that is loaded ahead on its own
    stream, or one layer (least memory, slowest)."""

    MODEL = "model"
    GROUP = "group"
    SEQUENTIAL = "sequential"


def named(kind: str) -> Offload:
    """Return the offload of that name. Raises UserError for an unknown one."""
    if kind not in list(Offload):
        raise unknown("offload", kind, list(Offload))
    return Offload(kind)


def check(kind: str, device: torch.device) -> Offload:
    """Return the offload of that name. Raises UserError for an unknown one, or if the device is the CPU."""
    found = named(kind)
    if device.type == "cpu":
        raise UserError(f"offload '{kind}' keeps weights off a GPU, and the device is cpu", "leave it out")
    return found


def offload(pipeline: Any, kind: Offload, device: torch.device) -> None:
    """Add the hooks to a pipeline whose weights are on the CPU; `is_offloaded` is true afterwards.

    Add adapters first: they are new weights.
    """
    pipeline.offloaded = kind
    if kind is Offload.MODEL:
        pipeline.enable_model_cpu_offload(device=device)
    elif kind is Offload.SEQUENTIAL:
        # a VAE is small, and exact tiling reads its weights without calling the hooked layers
        pipeline._exclude_from_cpu_offload = [*pipeline._exclude_from_cpu_offload, "vae"]
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(device, offload_type="leaf_level", use_stream=device.type == "cuda")


def clear(pipeline: Any) -> None:
    """Move all components off the GPU if whole components are offloaded.

    Otherwise a text encoder would stay on the GPU while the VAE runs before the backbone.
    """
    for hook in getattr(pipeline, "_all_hooks", ()):
        hook.offload()


def is_offloaded(pipeline: Any) -> bool:
    """Whether a pipeline's weights are offloaded between its calls."""
    return getattr(pipeline, "offloaded", None) is not None


def tiling_memory(pipeline: Any, device: torch.device) -> int:
    """Return the bytes that a pass of a loaded pipeline's VAE may use on the device that it runs on."""
    import torch

    from uhr.models.vae.budget import device_budget, host_budget

    if device.type != "cuda":
        return host_budget()
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights = 0 if is_offloaded(pipeline) else sum(_bytes(part) for part in parts)
    return device_budget(torch.cuda.get_device_properties(device).total_memory, weights)


def _bytes(part: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in part.parameters())
