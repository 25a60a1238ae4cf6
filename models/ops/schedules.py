"""Schedules: how sigma falls from 1 (noise) to 0 (data) over the steps of a sampler.

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


class Shifter(Protocol):
    """A dynamic shift for a number of image tokens: its factor, refused where the calibration ends, and mu,
    the factor's logarithm."""

    def factor(self, tokens: int) -> float: ...

    def mu(self, tokens: int) -> float: ...


class Runaway(UserError):
    """A dynamic shift above its calibration. Who asked for the schedule knows what to change: `mended`."""

    def mended(self, fix: str) -> UserError:
        return UserError(self.what, fix)


def refuse_runaway(tokens: int, limit: int, mu: float) -> None:
    """Runaway above `limit` image tokens, where the lines through which mu was fitted run away."""
    if tokens > limit:
        raise Runaway(
            f"the dynamic shift is calibrated up to {limit} image tokens; this image has "
            f"{tokens} (factor {math.exp(mu):,.0f}: almost every step at pure noise)",
            "shift by a fixed factor",
        )


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
        refuse_runaway(tokens, self.max_tokens, self.mu(tokens))
        return math.exp(self.mu(tokens))


def shifted(
    policy: ShiftPolicy, steps: int, tokens: int, factor: float = 3.0, dynamic: Shifter | None = None
) -> torch.Tensor:
    """The linear grid shifted by a policy: not at all, by `factor`, or by the number of image tokens.

    `dynamic` is the backbone family's own (`Backbone.shifter`); FLUX.1-dev's if None.
    """
    sigmas = linear(steps)
    if policy is ShiftPolicy.NONE:
        return sigmas
    if policy is ShiftPolicy.STATIC:
        return shift(sigmas, factor)
    assert policy is ShiftPolicy.DYNAMIC, policy
    return shift(sigmas, (dynamic or Calibration()).factor(tokens))


def logarithmic(steps: int, start: float = 1.0) -> torch.Tensor:
    """Levels in geometric progression from `start` to the last level of the linear grid, then 0.

    RealUHR's ablation names a logarithmic schedule without a formula; this one shares the linear grid's ends.
    """
    ends = linear(steps, start)
    ratio = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    return torch.cat([start * float(steps) ** -ratio, ends[-1:]])


def cosine(steps: int, start: float = 1.0) -> torch.Tensor:
    """Uniform in the angle a with tan(a) = sigma / (1 - sigma), from `start` to 0.

    That is the cosine schedule's signal-to-noise ratio carried over to rectified flow ("CosMap", Esser et al.
    2403.03206). RealUHR's ablation names a cosine schedule without a formula.
    """
    angle = math.atan2(start, 1 - start) * linear(steps)
    return angle.sin() / (angle.sin() + angle.cos())


def warp(t: torch.Tensor, alpha: float = 0.15, p: float = 2.0) -> torch.Tensor:
    """RealUHR's time warp (eq. 6, 7): clip(t (1 + alpha sgn(t - 0.5) sin(pi t)^p), 0, 1), t = 1 - sigma.

    It jumps up by alpha in all at t = 0.5, which stays where it is. UserError for an alpha at which it would
    not rise everywhere (`largest_alpha`); the paper calls it strictly monotone for every alpha below 0.5 and
    p above 1, which does not hold.
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
    """The smallest alpha at which the warp stops rising somewhere: 0.4878 for p = 2.

    The slope is 1 - alpha g(t) below t = 0.5 and 1 + alpha g(t) above, g = S^p + p pi t S^(p-1) C with
    S = sin(pi t), C = cos(pi t). p below 1 has no such alpha: the slope at t = 1 is infinite.
    """
    if p < 1:
        raise UserError(f"time warp of p {p:g}", "give p of at least 1; the paper's is 2")
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    sine, cosine_ = torch.sin(math.pi * t).clamp(min=0), torch.cos(math.pi * t)
    slope = sine**p + p * math.pi * t * sine ** (p - 1) * cosine_
    below, above = slope[t < 0.5].max(), (-slope[t > 0.5]).max()
    return 1 / max(below.item(), above.item())


@dataclass(frozen=True)
class Labelled:
    """A schedule that may tell the backbone another noise level than the true one.

    sigmas [steps + 1] are the true levels, which steps are taken by; labels [steps] are those that the
    backbone is told; float64.
    """

    sigmas: torch.Tensor
    labels: torch.Tensor


def _true(sigmas: torch.Tensor) -> Labelled:
    return Labelled(sigmas, sigmas[:-1])


def _warped_labels(steps: int, start: float, alpha: float, p: float) -> Labelled:
    sigmas = linear(steps, start)
    return Labelled(sigmas, 1 - warp(1 - sigmas[:-1], alpha, p))


def _warped_grid(steps: int, start: float, alpha: float, p: float) -> Labelled:
    return _true(1 - warp(1 - linear(steps, start), alpha, p))


PATCH_SCHEDULES: Mapping[str, Callable[[int, float, float, float], Labelled]] = {
    "warped-labels": _warped_labels,
    "warped-grid": _warped_grid,
    "uniform": lambda steps, start, alpha, p: _true(linear(steps, start)),
    "logarithmic": lambda steps, start, alpha, p: _true(logarithmic(steps, start)),
    "cosine": lambda steps, start, alpha, p: _true(cosine(steps, start)),
}


def patch_schedule(name: str, steps: int, start: float, alpha: float = 0.15, p: float = 2.0) -> Labelled:
    """RealUHR's schedule for patches, and those of its ablation, from noise level `start` (its gamma) to 0.

    warped-labels: Algorithm 1 as it stands, and the default: steps by the uniform grid; the backbone is told
                   the warped time: a latent past the middle is called cleaner than it is
    warped-grid:   steps and labels both by the warped time, as the prose around eq. 6 has it. At a start
                   other than 1 the first step begins at the warped level, as does the noise of that level
    """
    if name not in PATCH_SCHEDULES:
        raise unknown("patch schedule", name, PATCH_SCHEDULES)
    return PATCH_SCHEDULES[name](steps, start, alpha, p)
