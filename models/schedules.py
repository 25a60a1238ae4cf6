"""Schedules: how sigma falls from 1 (noise) to 0 (data) over the steps of a sampler.

A schedule is a float64 tensor [steps + 1] that begins at the first noise level and ends in 0; step i goes
from sigmas[i] to sigmas[i + 1]. Nothing here reads a scheduler object, whose configuration keys are partly
dead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from uhr.base.errors import UserError
from uhr.models.spec import ShiftPolicy


def linear(steps: int, start: float = 1.0) -> torch.Tensor:
    """start * (1 - i / steps), i = 0..steps: FLUX's grid for start 1, RealUHR's uniform grid for start
    gamma."""
    if steps < 1:
        raise UserError(f"{steps} steps", "give at least 1")
    assert 0 < start <= 1, start
    return start * (1 - torch.arange(steps + 1, dtype=torch.float64) / steps)


def shift(sigmas: torch.Tensor, factor: float) -> torch.Tensor:
    """factor * s / (1 + (factor - 1) s): keeps 0 and 1, lifts what is between for a factor above 1."""
    if factor <= 0:
        raise UserError(f"shift factor {factor}", "give a factor above 0; 1 shifts nothing, 3 is FLUX's")
    # the same as factor s / (1 + (factor - 1) s), and exact at both ends
    return factor * sigmas / (factor * sigmas + (1 - sigmas))


@dataclass(frozen=True)
class Calibration:
    """The line through which FLUX.1's dynamic shift was fitted: mu over the number of image tokens."""

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096

    @classmethod
    def of(cls, scheduler_config: Mapping[str, Any]) -> Calibration:
        """From a FlowMatchEulerDiscreteScheduler's configuration; FLUX.1-dev's values where it is silent."""
        read = scheduler_config.get
        return cls(
            read("base_shift", cls.base_shift),
            read("max_shift", cls.max_shift),
            read("base_image_seq_len", cls.base_tokens),
            read("max_image_seq_len", cls.max_tokens),
        )

    def mu(self, tokens: int) -> float:
        """log of the shift factor, linear in the number of packed image tokens: 1.15 for 4096."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return self.base_shift + slope * (tokens - self.base_tokens)

    def factor(self, tokens: int) -> float:
        """exp(mu), refused above `max_tokens`: the line runs away there (25 at 2K, 103,777 at 4K)."""
        if tokens > self.max_tokens:
            raise UserError(
                f"the dynamic shift is calibrated up to {self.max_tokens} image tokens; this picture has "
                f"{tokens} (factor {math.exp(self.mu(tokens)):,.0f}: almost every step at pure noise)",
                "take a static one: --set shift=static",
            )
        return math.exp(self.mu(tokens))


def shifted(
    policy: ShiftPolicy, steps: int, tokens: int, factor: float = 3.0, calibration: Calibration | None = None
) -> torch.Tensor:
    """The linear grid shifted by a policy: not at all, by `factor`, or by the number of image tokens."""
    sigmas = linear(steps)
    if policy is ShiftPolicy.NONE:
        return sigmas
    if policy is ShiftPolicy.STATIC:
        return shift(sigmas, factor)
    assert policy is ShiftPolicy.DYNAMIC, policy
    return shift(sigmas, (calibration or Calibration()).factor(tokens))
