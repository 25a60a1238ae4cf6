"""How much memory a VAE pass may use: what the weights leave of a GPU, or a share of the host's memory.

It depends on the total memory, not on what is free at the moment: the same call on the same machine, with as
many threads on a CPU, has the same tiling, and its image is the same to the last bit.
"""

from __future__ import annotations

import os

import torch

MOST = 20 << 30
"""Bytes that are enough to decode 8192 x 8192 in float32; more memory saves little work."""

RESERVE = 2 << 30
"""Bytes that a pass leaves to the driver's context, kernels, the image and its latents."""

LEAST = 1 << 30


def device_budget(memory: int, weights: int) -> int:
    """Return the bytes for a pass on a device with `memory` bytes, of which weights take `weights`."""
    return min(MOST, max(memory - weights - RESERVE, LEAST))


def host_budget(memory: int | None = None, threads: int | None = None, cores: int | None = None) -> int:
    """Return the bytes for a pass on the CPU: half of the memory, times this process's share of the cores.

    The workers of a set divide the cores, so that together they use at most that half. Arguments default to
    those of this machine and process.
    """
    memory = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    threads, cores = threads or torch.get_num_threads(), cores or os.cpu_count() or 1
    return min(MOST, max(memory // 2 * min(threads, cores) // cores, LEAST))
