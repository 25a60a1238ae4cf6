"""The backbone as a function from unpacked latents to velocity, with the recipe's guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from uhr.models.families.base import Backbone
from uhr.models.ops.latents import pack, unpack
from uhr.train.recipes.base import Guidance


class BackboneVelocity:
    """A transformer, called as samplers call it: an adapter gets the same inputs in training and sampling, in
    the same dtypes.
    """

    def __init__(self, family: Backbone, transformer: Any, guidance: Guidance) -> None:
        self.family, self.transformer, self.guidance = family, transformer, guidance

    def __call__(
        self, noisy: torch.Tensor, sigma: torch.Tensor, texts: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Predict the velocity (noise - data), float32 [B, C, h, w], of noisy [B, C, h, w] at sigma [B] in
        [0, 1].

        `texts` are the family's text tensors by name; every sample gets the recipe's guidance.
        """
        count, _, height, width = noisy.shape
        scale = self.guidance.scale
        guidance = None if scale is None else torch.full((count,), scale, device=noisy.device)
        image_ids = self.family.image_ids(height // 2, width // 2, noisy.device)
        condition = self.family.condition(texts, image_ids, guidance, self.transformer.dtype)
        return unpack(self.family.call(self.transformer, pack(noisy), sigma, condition), height, width)
