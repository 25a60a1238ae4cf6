"""The exponential moving average of the adapter, with a warm-up of its decay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MARK = "uhr_average"
"""The key in the metadata of `ema.safetensors` for how the average was made. A file without it was averaged
with the full decay from the first step on, starting from the untrained adapter."""

WARMED_UP = "warm-up"


def decay_at(step: int, decay: float) -> float:
    """The decay of the update after optimiser step `step`, counted from 1: min(decay, (1 + n) / (10 + n))
    with the n = step - 1 updates before it, and 0 for the first.

    This is the warm-up of diffusers' `EMAModel`: a short run ends with an average of about its last tenth of
    steps. The full decay from the start would leave mostly the untrained adapter, whose B is zero (95 % of it
    after 50 steps of 0.999). The alternative, dividing by 1 - decay^steps at export, is exact for B
    alone: A does not begin at zero.
    """
    assert step >= 1, step
    n = step - 1
    return min(decay, (1 + n) / (10 + n)) if n else 0.0


def full_from(decay: float) -> int:
    """The first step whose update uses the full decay: 8,991 for 0.999."""
    return max(1, math.ceil((10 * decay - 1) / (1 - decay) - 1e-9)) + 1


def describe_average(decay: float, steps: int) -> str:
    """Describe the average of a run of so many steps for people."""
    last = decay_at(steps, decay)
    if last == decay:
        return f"decay {decay:g} from step {full_from(decay):,} on, less before"
    return (
        f"decay {last:.4g} at the last of {steps:,} steps; {decay:g} is reached at step {full_from(decay):,}"
    )


def read_average(file: Path, decay: float, step: int) -> dict[str, torch.Tensor]:
    """Read the average in a checkpoint's `ema.safetensors` after `step` steps.

    An average of an earlier version, without a warm-up, is corrected: decay^step of it is the untrained B,
    which is zero, so every B is divided by 1 - decay^step. A needs no correction.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata: Mapping[str, str] = opened.metadata() or {}
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    if metadata.get(MARK) == WARMED_UP or step == 0:
        return tensors
    share = 1 - decay**step
    return {key: tensor / share if ".lora_B." in key else tensor for key, tensor in tensors.items()}
