"""How much memory a VAE's pass is given: what the weights leave of a GPU, a share of the host's memory on a
CPU, and no more than helps.

It hangs on what there is in all, not on what is free at the moment: the same call on the same machine, with
as many threads on a CPU, is tiled in the same way, and its image is the same to the last bit.
"""

from __future__ import annotations

import os

import torch

MOST = 20 << 30
"""Bytes with which 8192 x 8192 is decoded in float32; more memory spares little work."""

BESIDE = 2 << 30
"""Bytes that a pass must leave: the driver's context, kernels, the image and its latents."""

LEAST = 1 << 30


def room(memory: int, weights: int) -> int:
    """Bytes for a pass on a device of `memory` bytes beside so many of weights."""
    return min(MOST, max(memory - weights - BESIDE, LEAST))


def host_room(memory: int | None = None, threads: int | None = None, cores: int | None = None) -> int:
    """Bytes for a pass on the CPU: of half of the memory the share that this process has of the cores, so
    that the workers of a set, who divide the cores, take no more than that half together. Of this machine and
    this process where nothing is said."""
    memory = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    threads, cores = threads or torch.get_num_threads(), cores or os.cpu_count() or 1
    return min(MOST, max(memory // 2 * min(threads, cores) // cores, LEAST))
