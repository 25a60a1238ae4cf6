"""Seeded random weights with which signals neither vanish nor explode."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Gain = Callable[[str], tuple[float, float]]
"""A parameter's name -> (factor on its standard deviation 1/sqrt(fan in), mean)."""


def draw(module: Any, component: str, seed: int, gain: Gain) -> Any:
    """Fill every parameter from its own random stream, seeded by seed, component and name, in any order."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(values(name, tuple(parameter.shape), component, seed, gain))
    return module.eval()


def stream(name: str, component: str, seed: int) -> Any:
    """Return a parameter's random generator. It is numpy's, whose numbers, unlike torch's, are the same on
    every processor."""
    import numpy as np

    return np.random.default_rng([seed, zlib.crc32(f"{component}.{name}".encode())])


def values(name: str, shape: tuple[int, ...], component: str, seed: int, gain: Gain) -> torch.Tensor:
    """Return a parameter's values, float32 in its shape."""
    import numpy as np
    import torch

    normal = stream(name, component, seed).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        scale, mean = (0.02, 1.0) if "norm" in name and name.endswith("weight") else (0.02, 0.0)
    else:
        embedding = any(
            part in name for part in ("embedding.weight", "shared", "embed_tokens", "relative_attention")
        )
        fan_in = 1 if embedding else math.prod(shape[1:])
        factor, mean = gain(name)
        scale = factor / math.sqrt(fan_in)
    return torch.from_numpy(normal * np.float32(scale) + np.float32(mean))


def vae_gain(spread: float) -> Gain:
    """Return the gain of a VAE whose posterior's mean has standard deviation `spread`."""
    # the features before the last convolution are normalised and pass a SiLU (rms about 0.6)
    factors = {"encoder.conv_out.weight": spread / 0.6, "decoder.conv_out.weight": 0.8}
    return lambda name: (factors.get(name, 1.0), 0.0)


def narrow(head: Any, channels: int) -> None:
    """Make a VAE's posterior narrow (log variance about -6), as trained VAEs have it. `head` is the layer of
    its moments: `channels` means, then as many log variances."""
    head.weight[channels:] *= 0.05
    head.bias[channels:] -= 6.0
