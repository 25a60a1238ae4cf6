"""GPUs with the numbers of their data sheets, and how long counted operations take on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from uhr.base.errors import UserError, unknown
from uhr.models.estimate.operations import Operations

LINEAR = 0.70
"""Share of the peak rate that products with large weights are assumed to reach."""

ATTENTION = 0.55
"""Share that attention reaches (forward, head width 128, windows included). With these two shares dense
FLUX.1-dev at 4096 x 4096 and 28 steps takes an H200 192 s."""

CONVOLUTION = 0.35
"""Share that the VAE's convolutions reach."""

LINK = 0.4
"""Share of the bus to the host that is reached; host memory is not pinned where whole components move."""

READING = 0.7
"""Share of the memory's bandwidth that is reached where weights are dequantised."""

RESERVED = 1 << 30
"""Bytes of a device that are unavailable: the driver's context, kernels, fragmentation of the allocator."""

_PCIE = {4: 31.5e9, 5: 63.0e9}
"""Bytes a second of 16 lanes in one direction, by generation."""


@dataclass(frozen=True)
class Device:
    """One GPU.

    `sold` is its memory in GB by its name, and `memory` in bytes what CUDA reports. Operations a second:
    `tensor` on dense tensor cores in bfloat16 or float16 with float32 sums, `float32` in plain float32. Bytes
    a second: `bandwidth` of its memory, `link` of the bus to the host.
    """

    name: str
    title: str
    sold: int
    memory: int
    tensor: float
    float32: float
    bandwidth: float
    link: float

    @property
    def usable(self) -> int:
        return self.memory - RESERVED

    def seconds(self, work: Operations, dtype: str = "bfloat16") -> float:
        """Return how long the operations take at the stated shares of the peak rate."""
        peak = self.float32 if dtype == "float32" else self.tensor
        return (work.linear / LINEAR + work.attention / ATTENTION + work.convolution / CONVOLUTION) / peak

    def reading(self, size: float) -> float:
        """Return the seconds to read or write `size` bytes of the device's memory."""
        return size / (READING * self.bandwidth)

    def moving(self, size: float) -> float:
        """Return the seconds to copy `size` bytes from the host."""
        return size / (LINK * self.link)


def _device(
    name: str, title: str, memory: tuple[int, int], tensor: float, float32: float, bandwidth: int, pcie: int
) -> Device:
    """Memory in GB as sold and in MiB as CUDA reports it; rates in tera-operations and GB a second."""
    sold, mib = memory
    rates = tensor * 1e12, float32 * 1e12, bandwidth * 1e9
    return Device(name, title, sold, mib << 20, *rates, _PCIE[pcie])


# Memory: what CUDA reports (`cudaDeviceProp.totalGlobalMem`, the "total capacity" of PyTorch's errors) is
# less than the card has: the driver keeps some, and so does ECC. It differs by driver; these are the least
# values seen in public logs of programs on Linux. Not each of these logs names its card: some values were
# assigned to a card by their size. H200: 139.72 to 139.81 GiB, where nvidia-smi says 143,771 MiB = 140.40 GiB
# and the data sheet 141 GB. RTX 4070: 11.56 to 11.71 GiB, by three logs that name it.
DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _device("rtx-3060", "GeForce RTX 3060", (12, 11931), 25.5, 12.7, 360, 4),
        _device("rtx-4070", "GeForce RTX 4070", (12, 11837), 58.3, 29.1, 504, 4),
        _device("rtx-4080", "GeForce RTX 4080", (16, 16049), 97.5, 48.7, 717, 4),
        _device("rtx-3090", "GeForce RTX 3090", (24, 24259), 71.0, 35.6, 936, 4),
        _device("rtx-4090", "GeForce RTX 4090", (24, 24084), 165.2, 82.6, 1008, 4),
        _device("rtx-5090", "GeForce RTX 5090", (32, 32112), 209.5, 104.8, 1792, 5),
        _device("rtx-a6000", "RTX A6000", (48, 48676), 154.8, 38.7, 768, 4),
        _device("l40s", "L40S", (48, 45486), 362.0, 91.6, 864, 4),
        _device("a100-40", "A100 40GB", (40, 40325), 312.0, 19.5, 1555, 4),
        _device("a100", "A100 80GB", (80, 81039), 312.0, 19.5, 2039, 4),
        _device("h100", "H100 SXM 80GB", (80, 81039), 989.4, 66.9, 3350, 5),
        _device("h200", "H200 SXM 141GB", (141, 143073), 989.4, 66.9, 4800, 5),
        _device("b200", "B200 180GB", (180, 182631), 2250.0, 75.0, 8000, 5),
    )
}
"""GPUs by name. Rates are from NVIDIA's data sheets and architecture papers; tensor rates are without
sparsity."""

DEFAULT = "h200"
"""The GPU that is planned for on a machine without one."""

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
"""The end of the name that the driver reports, as a regular expression. A Ti, SUPER, D, Laptop GPU, NVL or
MIG part is another chip, or less of it, and must not match."""


def device(name: str) -> Device:
    """Return the GPU of that name. Raises UserError with the nearest names if it is unknown."""
    if name not in DEVICES:
        raise unknown("GPU", name, DEVICES, "--on")
    return DEVICES[name]


def name_of_driver(driver_name: str) -> str | None:
    """Return the name in `DEVICES` of a GPU that the driver reports, or None if it is not in the table."""
    return next((name for name, mark in _MARKS.items() if re.search(rf"\b{mark}$", driver_name)), None)


def local_device() -> Device | None:
    """Return this machine's first GPU with its actual memory, or None without a GPU.

    Raises UserError if the GPU is not in the table.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    name = name_of_driver(found.name)
    if name is None:
        raise UserError(f"no data sheet of the GPU here, {found.name}, is known", "name another with --on")
    return replace(DEVICES[name], title=found.name, memory=found.total_memory)
