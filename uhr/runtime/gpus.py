"""The GPUs of this machine."""

from __future__ import annotations

import os


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs of this process, by their names for CUDA_VISIBLE_DEVICES."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    return tuple(map(str, range(torch.cuda.device_count())))
