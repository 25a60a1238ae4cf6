"""The running average of the adapter: how fast it forgets, and averages of checkpoints without a warm-up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

MARK = "uhr_average"
"""The key in the metadata of `ema.safetensors` that names how the average was made; a file without it was
averaged by the full decay from the first step on, beginning at the untrained adapter."""

WARMED_UP = "warm-up"


def decay_at(step: int, decay: float) -> float:
    """The decay of the update after optimiser step `step`, counted from 1: min(decay, (1 + n) / (10 + n))
    with the n = step - 1 updates before it, and 0 for the first.

    This is the warm-up of diffusers' `EMAModel`: a short run ends with an average of about its last tenth of
    steps, where the full decay from the start would leave mostly the untrained adapter, whose B is zero (95 %
    of it after 50 steps of 0.999). The alternative, dividing by 1 - decay^steps at export, is exact for B
    alone: A does not begin at zero.
    """
    assert step >= 1, step
    n = step - 1
    return min(decay, (1 + n) / (10 + n)) if n else 0.0


def full_from(decay: float) -> int:
    """The first step whose update has the full decay: 8,991 for 0.999."""
    return max(1, math.ceil((10 * decay - 1) / (1 - decay) - 1e-9)) + 1


def described(decay: float, steps: int) -> str:
    """For people: what the average of a run of so many steps is."""
    last = decay_at(steps, decay)
    if last == decay:
        return f"decay {decay:g} from step {full_from(decay):,} on, less before"
    return (
        f"decay {last:.4g} at the last of {steps:,} steps; {decay:g} is reached at step {full_from(decay):,}"
    )


def read_average(file: Path, decay: float, step: int) -> dict[str, torch.Tensor]:
    """The average in a checkpoint's `ema.safetensors` after `step` steps.

    One of an earlier version without warm-up is corrected: it holds decay^step of the untrained B, which is
    zero, and so every B is divided by 1 - decay^step. A is an average from its first value on.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata: Mapping[str, str] = opened.metadata() or {}
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    if metadata.get(MARK) == WARMED_UP or step == 0:
        return tensors
    share = 1 - decay**step
    return {key: tensor / share if ".lora_B." in key else tensor for key, tensor in tensors.items()}
