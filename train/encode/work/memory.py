"""How the VAE of `encode` uses memory: exact tiling, and how many images it encodes together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uhr.base.console import note
from uhr.base.formatting import gibibytes

if TYPE_CHECKING:
    import torch

    from uhr.models.loading.opening import Model

MOST_TOGETHER = 8
"""Images of one call of the VAE. More do not make large images faster, and a unit has few of them."""


def memory_for(vae: Any, device: torch.device | None = None) -> int:
    """Bytes that a call of the VAE on a device (its own, if None) may use.

    As `models.vae.budget`, they depend on the machine alone.
    """
    import torch

    from uhr.models.vae.budget import device_budget, host_budget

    device = vae.device if device is None else device
    if device.type != "cuda":
        return host_budget()
    weights = sum(parameter.nbytes for parameter in vae.parameters())
    return device_budget(torch.cuda.get_device_properties(device).total_memory, weights)


def tiled(vae: Any) -> None:
    """Apply exact tiling: images that do not fit into memory are encoded in bands."""
    from pydantic import ByteSize

    from uhr.models.vae.tiled import ExactTiling

    ExactTiling(memory=ByteSize(memory_for(vae))).apply(vae)


def images_together(vae: Any, height: int, width: int) -> int:
    """How many images of height x width px the VAE encodes in one call: as many as fit untiled, at least 1
    and at most `MOST_TOGETHER`.
    """
    from pydantic import ByteSize

    from uhr.models.vae.tiled import ExactTiling

    return ExactTiling(memory=ByteSize(memory_for(vae))).untiled_samples(vae, height, width, MOST_TOGETHER)


def text_device(model: Model, dtype: str, device: torch.device | str) -> str:
    """The device for a model's text encoders: `device`, or the CPU if they do not fit that GPU."""
    import torch

    from uhr.models.estimate.devices import RESERVED
    from uhr.models.estimate.shapes import empty_components
    from uhr.models.estimate.weights import weight_bytes

    device = torch.device(device)
    if device.type != "cuda":
        return str(device)
    parts = empty_components(model)
    names = [name for name in model.spec.text_components if name in parts]
    size = sum(weight_bytes(parts[name], getattr(torch, dtype)).whole for name in names)
    memory = torch.cuda.get_device_properties(device).total_memory - RESERVED
    if size <= memory:
        return str(device)
    what = f"the text encoders need {gibibytes(size)}, and the GPU has {gibibytes(memory)}"
    note(f"{what}: captions are encoded on the CPU")
    return "cpu"


def empty_gpu_cache() -> None:
    """Return the freed memory of a GPU to other models and processes."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
