"""What GPUs can do by their makers' data sheets, and how long counted operations take on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from uhr.base.errors import UserError, unknown
from uhr.models.estimate.operations import Operations

LINEAR = 0.70
"""Share of the peak rate that is taken to be reached by the products of large weights."""

ATTENTION = 0.55
"""By attention, forward, at head width 128; by windows, too. With these two shares dense FLUX.1-dev at 4096 x
4096 and 28 steps takes an H200 192 s."""

CONVOLUTION = 0.35
"""By the VAE's convolutions."""

LINK = 0.4
"""Of the bus to the host, whose memory is not pinned where whole components move."""

READING = 0.7
"""Of the memory's bandwidth, where weights are dequantised."""

RESERVED = 1 << 30
"""Bytes of a device that are not to be had: the driver's context, kernels, what the allocator cannot fill."""

_PCIE = {4: 31.5e9, 5: 63.0e9}
"""Bytes a second of 16 lanes one way, by generation."""


@dataclass(frozen=True)
class Device:
    """One GPU. `memory` in bytes; operations a second: `tensor` on dense tensor cores in bfloat16 or float16
    with float32 sums, `float32` in plain float32; bytes a second: `bandwidth` of its memory, `link` of the
    bus to the host."""

    name: str
    title: str
    memory: int
    tensor: float
    float32: float
    bandwidth: float
    link: float

    @property
    def usable(self) -> int:
        return self.memory - RESERVED

    def seconds(self, work: Operations, dtype: str = "bfloat16") -> float:
        """How long the operations take at the stated shares of the peak rate."""
        peak = self.float32 if dtype == "float32" else self.tensor
        return (work.linear / LINEAR + work.attention / ATTENTION + work.convolution / CONVOLUTION) / peak

    def reading(self, size: float) -> float:
        """Seconds to read or write so many bytes of the device's memory."""
        return size / (READING * self.bandwidth)

    def moving(self, size: float) -> float:
        """Seconds to bring so many bytes over from the host."""
        return size / (LINK * self.link)


def _device(
    name: str, title: str, gib: int, tensor: float, float32: float, bandwidth: int, pcie: int
) -> Device:
    """Memory in GiB, rates in tera-operations a second, bandwidth in GB/s."""
    return Device(name, title, gib << 30, tensor * 1e12, float32 * 1e12, bandwidth * 1e9, _PCIE[pcie])


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _device("rtx-3060", "GeForce RTX 3060", 12, 25.5, 12.7, 360, 4),
        _device("rtx-4070", "GeForce RTX 4070", 12, 58.3, 29.1, 504, 4),
        _device("rtx-4080", "GeForce RTX 4080", 16, 97.5, 48.7, 717, 4),
        _device("rtx-3090", "GeForce RTX 3090", 24, 71.0, 35.6, 936, 4),
        _device("rtx-4090", "GeForce RTX 4090", 24, 165.2, 82.6, 1008, 4),
        _device("rtx-5090", "GeForce RTX 5090", 32, 209.5, 104.8, 1792, 5),
        _device("rtx-a6000", "RTX A6000", 48, 154.8, 38.7, 768, 4),
        _device("l40s", "L40S", 48, 362.0, 91.6, 864, 4),
        _device("a100-40", "A100 40GB", 40, 312.0, 19.5, 1555, 4),
        _device("a100", "A100 80GB", 80, 312.0, 19.5, 2039, 4),
        _device("h100", "H100 SXM 80GB", 80, 989.4, 66.9, 3350, 5),
        _device("h200", "H200 SXM 141GB", 141, 989.4, 66.9, 4800, 5),
        _device("b200", "B200 180GB", 180, 2250.0, 75.0, 8000, 5),
    )
}
"""NVIDIA's data sheets and architecture papers; tensor rates without sparsity."""

DEFAULT = "h200"
"""What is planned for where no GPU is here."""

_MARKS = {
    "rtx-3060": r"RTX 3060",
    "rtx-4070": r"RTX 4070",
    "rtx-4080": r"RTX 4080",
    "rtx-3090": r"RTX 3090",
    "rtx-4090": r"RTX 4090",
    "rtx-5090": r"RTX 5090",
    "rtx-a6000": r"RTX A6000",
    "l40s": r"L40S",
    "a100-40": r"A100.*[ -]40GB",
    "a100": r"A100.*[ -]80GB( PCIe)?",
    "h100": r"H100( SXM)? 80GB( HBM3)?",
    "h200": r"H200( SXM 141GB)?",
    "b200": r"B200( 180GB)?",
}
"""How the driver calls them, to the end of the name: a Ti, SUPER, D, Laptop GPU, NVL or MIG part is another
chip, or less of it."""


def device(name: str) -> Device:
    """The GPU of that name; UserError with the nearest names."""
    if name not in DEVICES:
        raise unknown("GPU", name, DEVICES, "--on")
    return DEVICES[name]


def called(driver_name: str) -> str | None:
    """The name here of a GPU that the driver calls so; None for one without a data sheet here."""
    return next((name for name, mark in _MARKS.items() if re.search(rf"\b{mark}$", driver_name)), None)


def here() -> Device | None:
    """This machine's first GPU, with the memory that it has; None without a GPU. UserError for one that is
    not in the table."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    name = called(found.name)
    if name is None:
        raise UserError(f"no data sheet of the GPU here, {found.name}, is known", "name another with --on")
    return replace(DEVICES[name], title=found.name, memory=found.total_memory)
