"""Rotary position embeddings for images larger than a backbone was trained at: NTK, YaRN, Resonance with
YaRN.

Each replaces a FLUX backbone's `pos_embed`: ids [S, axes] -> (cos, sin), float32 [S, sum of axes_dim],
channels in adjacent pairs, one angle each. An axis of dimension d has d/2 bands; unscaled, band k rotates a
token at position p by p * theta^(-2k/d) radians. Angles are float64 (float32 loses digits at high positions),
and there are no buffers, so `model.to(bfloat16)` cannot damage them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from uhr.base.errors import UserError

SPATIAL_AXES = (1, 2)
"""Rows and columns, in FLUX.1's ids (t, h, w) and FLUX.2's (t, h, w, l)."""

Scale = torch.Tensor
"""Length of an axis over the window that it was trained with, above 1: a float64 scalar tensor.

It stays a tensor so that no value is read back from a GPU, and the embedding compiles into one graph.
"""


def plain(dim: int, theta: float) -> torch.Tensor:
    """Return the unscaled frequencies theta^(-2k/dim), k = 0..dim/2-1, in radians per token: float64
    [dim/2]."""
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def band_of(rotations: float, dim: int, theta: float, window: float) -> float:
    """Return the (fractional) band that rotates `rotations` times within the window."""
    return dim * math.log(window / (2 * math.pi * rotations)) / (2 * math.log(theta))


def ramp(low: float, high: float, bands: int) -> torch.Tensor:
    """Return a ramp that is 0 up to band `low`, 1 from band `high`, and linear between: float64 [bands]."""
    if low == high:
        high += 0.001
    return ((torch.arange(bands, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)


def correction_ramp(
    fast: float, slow: float, dim: int, theta: float, window: float, top: int
) -> torch.Tensor:
    """Return YaRN's ramp between the bands that rotate `fast` and `slow` times in the window, in whole bands.

    `top` is the highest band that the upper end may have.
    """
    low = max(math.floor(band_of(fast, dim, theta, window)), 0)
    high = min(math.ceil(band_of(slow, dim, theta, window)), top)
    return ramp(low, high, dim // 2)


def magnitude(scale: Scale) -> torch.Tensor:
    """Return YaRN's temperature 0.1 ln(s) + 1, a factor on cos and sin: its square acts on attention
    logits."""
    return 0.1 * torch.log(scale) + 1


def yarn(
    dim: int, theta: float, window: float, scale: Scale, fast: float = 32, slow: float = 1
) -> torch.Tensor:
    """Return the frequencies [dim/2] of YaRN (Peng et al. 2309.00071, reference code).

    Bands that rotate more than `fast` times within the window stay, those below `slow` are interpolated by
    the scale, and a ramp blends between.
    """
    base = plain(dim, theta).to(scale.device)
    mix = correction_ramp(fast, slow, dim, theta, window, top=dim - 1).to(scale.device)
    return base * (1 - mix) + base / scale * mix


def resonant_exponents(dim: int, theta: float, window: float) -> torch.Tensor:
    """Return the exponents x of theta^(-x), float64 [dim/2], changed so that every band of at least one cycle
    has whole cycles per window.

    Bands with less than one cycle stay as they are. UltraFlux's paper would raise them to one full cycle, up
    to 530 times faster; its code does not, and this follows the code.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    cycles = window * plain(dim, theta) / (2 * math.pi)
    whole = -torch.log(2 * math.pi * cycles.round() / window) / math.log(theta)
    return torch.where(cycles >= 1, whole, exponents)


def resonance_yarn(dim: int, theta: float, window: float, scale: Scale) -> torch.Tensor:
    """Return the frequencies [dim/2] of UltraFlux's Resonance with YaRN, as in its code since 2025-12-17.

    Resonant frequencies, blended twice: from NTK (theta times scale^(d/(d-2))) to interpolation between 1.25
    and 0.75 rotations per window, and from unscaled to that blend between 16 and 2 rotations. The paper's
    formulas differ: its ramp is reversed as printed, and it has neither the NTK branch nor the second ramp.
    """
    exponents = resonant_exponents(dim, theta, window).to(scale.device)
    base = theta**-exponents
    ntk = (theta * scale ** (dim / (dim - 2))) ** -exponents
    slow = correction_ramp(1.25, 0.75, dim, theta, window, top=dim // 2).to(scale.device)
    blend = ntk * (1 - slow) + base / scale * slow
    fast = correction_ramp(16, 2, dim, theta, window, top=dim // 2).to(scale.device)
    return base * (1 - fast) + blend * fast


class PosEmbed(nn.Module):
    """The unscaled embedding, equal to diffusers' own bit for bit, and the base class of the scaled ones."""

    def __init__(self, theta: float, axes_dim: Sequence[int]) -> None:
        super().__init__()
        assert all(dim % 2 == 0 and dim > 2 for dim in axes_dim), axes_dim
        self.theta = theta
        self.axes_dim = tuple(axes_dim)

    def bands(self, axis: int, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the frequencies [dim/2] and the magnitude [] of an axis of `length` tokens; float64."""
        return plain(self.axes_dim[axis], self.theta).to(length.device), torch.ones_like(length)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if ids.dtype in (torch.bfloat16, torch.float16):
            raise UserError(
                f"position ids are {ids.dtype}: neighbours would share a position",
                "pass float32 ids, as the pipelines here do",
            )
        # these devices have no float64
        device = torch.device("cpu") if ids.device.type in ("mps", "npu") else ids.device
        positions = ids.to(device, torch.float64)
        cos, sin = [], []
        for axis in range(len(self.axes_dim)):
            at = positions[:, axis]
            frequencies, size = self.bands(axis, at.max() - at.min() + 1)
            angles = torch.outer(at, frequencies).repeat_interleave(2, dim=1)
            cos.append((angles.cos() * size).float())
            sin.append((angles.sin() * size).float())
        return torch.cat(cos, dim=1).to(ids.device), torch.cat(sin, dim=1).to(ids.device)

    def extra_repr(self) -> str:
        return f"theta={self.theta:g}, axes_dim={self.axes_dim}"


class NtkPosEmbed(PosEmbed):
    """Multiplies theta by `factor` on every axis, the form that I-Max, URAE, HiFlow, CLEAR and UltraGen
    share.

    `floor` is I-Max's clip: no frequency is below the unscaled one divided by it (I-Max uses the square root
    of image tokens / 4096).
    """

    def __init__(
        self, theta: float, axes_dim: Sequence[int], factor: float = 10.0, floor: float | None = None
    ) -> None:
        super().__init__(theta, axes_dim)
        self.factor = factor
        self.floor = floor

    def bands(self, axis: int, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dim = self.axes_dim[axis]
        frequencies = plain(dim, self.theta * self.factor)
        if self.floor is not None:
            frequencies = torch.maximum(frequencies, plain(dim, self.theta) / self.floor)
        return frequencies.to(length.device), torch.ones_like(length)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, factor={self.factor:g}, floor={self.floor}"


class _WindowedPosEmbed(PosEmbed, ABC):
    """Scales each spatial axis by its own length over the window; an axis within the window is not scaled.

    `window` is in tokens per side: a spec's native side over its `pixel_multiple`, 64 for FLUX. The length of
    an axis is max - min + 1 over all ids, including those of text, which are 0. The magnitude acts on text
    tokens too.
    """

    def __init__(self, theta: float, axes_dim: Sequence[int], window: int) -> None:
        super().__init__(theta, axes_dim)
        assert window > 0, window
        self.window = window

    @abstractmethod
    def scaled(self, dim: int, scale: Scale) -> torch.Tensor:
        """Return the frequencies [dim/2] of an axis longer than the window."""

    def bands(self, axis: int, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        unscaled, one = super().bands(axis, length)
        if axis not in SPATIAL_AXES:
            return unscaled, one
        beyond = length > self.window
        scale = (length / self.window).clamp(min=1)
        frequencies = torch.where(beyond, self.scaled(self.axes_dim[axis], scale), unscaled)
        return frequencies, torch.where(beyond, magnitude(scale), one)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}"


class YarnPosEmbed(_WindowedPosEmbed):
    """Scales each spatial axis by YaRN (`yarn`)."""

    def scaled(self, dim: int, scale: Scale) -> torch.Tensor:
        return yarn(dim, self.theta, self.window, scale)


class ResonancePosEmbed(_WindowedPosEmbed):
    """Scales each spatial axis longer than the window by UltraFlux's Resonance with YaRN
    (`resonance_yarn`)."""

    def scaled(self, dim: int, scale: Scale) -> torch.Tensor:
        return resonance_yarn(dim, self.theta, self.window, scale)
