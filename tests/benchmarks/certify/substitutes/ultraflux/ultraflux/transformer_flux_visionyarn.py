"""In place of UltraFlux's transformer: diffusers' own, which is the same within the window of positions."""

from diffusers import FluxTransformer2DModel

__all__ = ["FluxTransformer2DModel"]
