"""How much memory a VAE's pass is given on a device: what the weights leave of it, and no more than helps.

It hangs on what the device has in all, not on what is free at the moment: the same call on the same machine
is tiled in the same way, and its picture is the same to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch

from uhr.models.offload import is_offloaded

MOST = 20 << 30
"""Bytes with which 8192 x 8192 is decoded in float32; more memory spares little work."""

BESIDE = 2 << 30
"""Bytes that a pass must leave: the driver's context, kernels, the picture and its latents."""

LEAST = 1 << 30


def room(memory: int, weights: int) -> int:
    """Bytes for a pass on a device of `memory` bytes beside so many of weights."""
    return min(MOST, max(memory - weights - BESIDE, LEAST))


def room_of(pipeline: Any) -> int:
    """Bytes for a pass of a loaded pipeline's VAE."""
    device = torch.device(pipeline._execution_device)
    if device.type != "cuda":
        return MOST
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights = 0 if is_offloaded(pipeline) else sum(_bytes(part) for part in parts)
    return room(torch.cuda.get_device_properties(device).total_memory, weights)


def _bytes(part: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in part.parameters())
