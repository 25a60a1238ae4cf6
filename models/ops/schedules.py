"""Schedules of noise levels: how sigma falls from 1 (noise) to 0 (data) over the steps of a sampler.

A schedule is a float64 tensor [steps + 1] that begins at the first noise level and ends in 0; step i goes
from sigmas[i] to sigmas[i + 1]. Nothing here reads a scheduler object: `scheduler_config.py` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from uhr.base.errors import UserError, unknown
from uhr.models.ops.choices import ShiftPolicy


def linear(steps: int, start: float = 1.0) -> torch.Tensor:
    """Return start * (1 - i / steps), i = 0..steps: FLUX's grid for start 1, RealUHR's uniform grid for start
    gamma. Raises UserError for fewer than 1 step."""
    if steps < 1:
        raise UserError(f"{steps} steps are too few", "give at least 1")
    assert 0 < start <= 1, start
    return start * (1 - torch.arange(steps + 1, dtype=torch.float64) / steps)


def shift(sigmas: torch.Tensor, factor: float) -> torch.Tensor:
    """Shift noise levels s to factor * s / (1 + (factor - 1) s), which keeps 0 and 1 and raises the levels
    between for a factor above 1. Raises UserError unless the factor is above 0."""
    if factor <= 0:
        fix = "give a factor above 0; 1 shifts nothing, 3 is FLUX's"
        raise UserError(f"shift factor {factor} is invalid", fix)
    # the same as factor s / (1 + (factor - 1) s), and exact at both ends
    return factor * sigmas / (factor * sigmas + (1 - sigmas))


class Shifter(Protocol):
    """A dynamic shift by the number of image tokens: its factor, an error beyond the calibration, and mu, the
    logarithm of the factor."""

    def factor(self, tokens: int) -> float: ...

    def mu(self, tokens: int) -> float: ...


class ShiftOutOfRange(UserError):
    """A dynamic shift was requested beyond its calibration. Callers replace the fix by what they can
    change."""

    def with_fix(self, fix: str) -> UserError:
        """Return the same error with another fix."""
        return UserError(self.what, fix)


def check_calibrated(tokens: int, limit: int, mu: float) -> None:
    """Raise ShiftOutOfRange above `limit` image tokens: mu was fitted below, and its line rises too far."""
    if tokens > limit:
        raise ShiftOutOfRange(
            f"the dynamic shift is calibrated up to {limit} image tokens; this image has "
            f"{tokens} (factor {math.exp(mu):,.0f}: almost every step at pure noise)",
            "shift by a fixed factor",
        )


@dataclass(frozen=True)
class Calibration:
    """FLUX.1's dynamic shift: a line of mu over the number of image tokens."""

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096

    @classmethod
    def of(cls, scheduler_config: Mapping[str, Any]) -> Calibration:
        """Read a FlowMatchEulerDiscreteScheduler's configuration; missing values are FLUX.1-dev's."""
        read = scheduler_config.get
        return cls(
            read("base_shift", cls.base_shift),
            read("max_shift", cls.max_shift),
            read("base_image_seq_len", cls.base_tokens),
            read("max_image_seq_len", cls.max_tokens),
        )

    def mu(self, tokens: int) -> float:
        """Return the logarithm of the shift factor, linear in the number of packed image tokens: 1.15 for
        4096."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return self.base_shift + slope * (tokens - self.base_tokens)

    def factor(self, tokens: int) -> float:
        """Return exp(mu). Raises ShiftOutOfRange above `max_tokens`, where the factor is far too large (25 at
        2K, 103,777 at 4K)."""
        check_calibrated(tokens, self.max_tokens, self.mu(tokens))
        return math.exp(self.mu(tokens))


def shifted(
    policy: ShiftPolicy, steps: int, tokens: int, factor: float = 3.0, dynamic: Shifter | None = None
) -> torch.Tensor:
    """Return the linear grid shifted by a policy: not at all, by `factor`, or by the number of image tokens.

    `dynamic` is the backbone family's own shift (`Backbone.shifter`); None is FLUX.1-dev's.
    """
    sigmas = linear(steps)
    if policy is ShiftPolicy.NONE:
        return sigmas
    if policy is ShiftPolicy.STATIC:
        return shift(sigmas, factor)
    assert policy is ShiftPolicy.DYNAMIC, policy
    return shift(sigmas, (dynamic or Calibration()).factor(tokens))


def logarithmic(steps: int, start: float = 1.0) -> torch.Tensor:
    """Return levels in geometric progression from `start` to the last level of the linear grid, then 0.

    RealUHR's ablation names a logarithmic schedule without a formula; this one shares the linear grid's ends.
    """
    ends = linear(steps, start)
    ratio = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    return torch.cat([start * float(steps) ** -ratio, ends[-1:]])


def cosine(steps: int, start: float = 1.0) -> torch.Tensor:
    """Return levels uniform in the angle a with tan(a) = sigma / (1 - sigma), from `start` to 0.

    This is the cosine schedule's signal-to-noise ratio for rectified flow ("CosMap", Esser et al.
    2403.03206). RealUHR's ablation names a cosine schedule without a formula.
    """
    angle = math.atan2(start, 1 - start) * linear(steps)
    return angle.sin() / (angle.sin() + angle.cos())


def warp(t: torch.Tensor, alpha: float = 0.15, p: float = 2.0) -> torch.Tensor:
    """RealUHR's time warp (eq. 6, 7): clip(t (1 + alpha sgn(t - 0.5) sin(pi t)^p), 0, 1), t = 1 - sigma.

    It jumps up by alpha in total at t = 0.5, which itself is unchanged. Raises UserError for an alpha at
    which it is not monotone (`largest_alpha`); the paper calls it strictly monotone for every alpha below 0.5
    and p above 1, which is not true.
    """
    limit = largest_alpha(p)
    if not 0 <= alpha < limit:
        raise UserError(
            f"the time warp is not monotone for alpha {alpha:g} and p {p:g}", f"below {limit:.4f} it is"
        )
    offset = t - 0.5
    side = torch.where(offset.abs() < 1e-9, 0.0, offset.sign())
    return (t * (1 + alpha * side * torch.sin(math.pi * t).clamp(min=0) ** p)).clamp(0, 1)


def largest_alpha(p: float) -> float:
    """Return the smallest alpha at which the warp stops rising somewhere: 0.4878 for p = 2.

    The slope is 1 - alpha g(t) below t = 0.5 and 1 + alpha g(t) above, g = S^p + p pi t S^(p-1) C with
    S = sin(pi t), C = cos(pi t). p below 1 has no such alpha: the slope at t = 1 is infinite.
    """
    if p < 1:
        raise UserError(f"time warp with p {p:g}", "give p of at least 1; the paper's is 2")
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    sine, cosine_ = torch.sin(math.pi * t).clamp(min=0), torch.cos(math.pi * t)
    slope = sine**p + p * math.pi * t * sine ** (p - 1) * cosine_
    below, above = slope[t < 0.5].max(), (-slope[t > 0.5]).max()
    return 1 / max(below.item(), above.item())


@dataclass(frozen=True)
class LabelledSchedule:
    """A schedule that may show the backbone another noise level than the true one.

    sigmas [steps + 1] are the true levels, which determine the steps; labels [steps] are the levels shown to
    the backbone; float64.
    """

    sigmas: torch.Tensor
    labels: torch.Tensor


def _true(sigmas: torch.Tensor) -> LabelledSchedule:
    return LabelledSchedule(sigmas, sigmas[:-1])


def _warped_labels(steps: int, start: float, alpha: float, p: float) -> LabelledSchedule:
    sigmas = linear(steps, start)
    return LabelledSchedule(sigmas, 1 - warp(1 - sigmas[:-1], alpha, p))


def _warped_grid(steps: int, start: float, alpha: float, p: float) -> LabelledSchedule:
    return _true(1 - warp(1 - linear(steps, start), alpha, p))


PATCH_SCHEDULES: Mapping[str, Callable[[int, float, float, float], LabelledSchedule]] = {
    "warped-labels": _warped_labels,
    "warped-grid": _warped_grid,
    "uniform": lambda steps, start, alpha, p: _true(linear(steps, start)),
    "logarithmic": lambda steps, start, alpha, p: _true(logarithmic(steps, start)),
    "cosine": lambda steps, start, alpha, p: _true(cosine(steps, start)),
}


def patch_schedule(
    name: str, steps: int, start: float, alpha: float = 0.15, p: float = 2.0
) -> LabelledSchedule:
    """Return RealUHR's schedule for patches, or one of its ablation, from noise level `start` (its gamma) to
    0.

    warped-labels: Algorithm 1, and the default: steps by the uniform grid, and labels by the warped time, so
                   a latent past the middle is labelled cleaner than it is
    warped-grid:   steps and labels both by the warped time, as in the prose around eq. 6. At a start other
                   than 1 the first step, and the noise added for it, are at the warped level

    Raises UserError for an unknown name.
    """
    if name not in PATCH_SCHEDULES:
        raise unknown("patch schedule", name, PATCH_SCHEDULES)
    return PATCH_SCHEDULES[name](steps, start, alpha, p)
