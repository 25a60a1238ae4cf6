"""The backbone as training calls it: unpacked latents in, velocity out; guidance as the recipe says."""

from __future__ import annotations

from typing import Any

import torch

from uhr.models.ops.latents import image_ids, pack, text_ids, unpack
from uhr.models.zoo import PromptEmbeds
from uhr.train.recipes.base import Guidance


class FluxVelocity:
    """FLUX.1's transformer. Takes the same path through dtypes as sampling: sigma and guidance go in as
    float32, and the transformer casts them to its own dtype before it multiplies by 1000.
    """

    def __init__(self, transformer: Any, guidance: Guidance) -> None:
        self.transformer, self.guidance = transformer, guidance

    def __call__(self, noisy: torch.Tensor, sigma: torch.Tensor, prompts: PromptEmbeds) -> torch.Tensor:
        """noisy [B, C, h, w] at sigma [B] in [0, 1] -> velocity (noise - data), float32 [B, C, h, w]."""
        count, _, height, width = noisy.shape
        dtype, device = self.transformer.dtype, noisy.device
        scale = self.guidance.scale
        tokens = self.transformer(
            hidden_states=pack(noisy).to(dtype),
            timestep=sigma.float(),
            guidance=None if scale is None else torch.full((count,), scale, device=device),
            pooled_projections=prompts.pooled.to(dtype),
            encoder_hidden_states=prompts.t5.to(dtype),
            txt_ids=text_ids(prompts.t5.shape[1], device),
            img_ids=image_ids(height // 2, width // 2, device),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width).float()


FAMILIES = {"flux1": FluxVelocity}
"""How each family's backbone is called."""
