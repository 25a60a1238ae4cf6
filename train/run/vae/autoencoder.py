"""The VAE as a function from images to latents and back, as its objectives see it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from uhr.models.ops.latents import sample_moments
from uhr.train.objectives.draws import Draws
from uhr.train.objectives.vae.base import Coded


class Autoencoder:
    """A VAE with float32 weights, which are the values that are trained.

    Args:
        vae: diffusers' own class, prepared.
        dtype: that of the computation. Below float32 it is autocast, in which normalisation stays float32.
        encodes: whether the encoder is trained; otherwise it runs without gradients.
    """

    def __init__(self, vae: Any, dtype: torch.dtype, encodes: bool) -> None:
        self.vae, self.dtype, self.encodes = vae, dtype, encodes

    def code(self, images: torch.Tensor, draws: Draws | None = None) -> Coded:
        """Encode and decode images, float32 [B, 3, H, W] in [-1, 1].

        draws: of the latents that are decoded; None decodes their mean.
        """
        with self._computing(images.device):
            with contextlib.nullcontext() if self.encodes else torch.no_grad():
                posterior = self.vae.encode(images).latent_dist
                mean, std = posterior.mean.float(), posterior.std.float()
            latents = mean
            if draws is not None:
                latents = sample_moments(mean, std, draws.normal("latents", mean.shape[1:]))
            decoded = self.vae.decode(latents).sample
        return Coded(mean, std, decoded.float())

    def _computing(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.dtype)
