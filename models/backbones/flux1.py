"""FLUX.1: T5 tokens and CLIP's pooled vector in, three position axes, guidance embedded (dev) or none
(schnell)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from uhr.models import latents as latent
from uhr.models.backbones.base import Backbone
from uhr.models.conditions import Condition
from uhr.models.schedules import Calibration
from uhr.models.spec import GuidanceKind


class Flux1(Backbone):
    """`FluxTransformer2DModel`."""

    name = "flux1"

    def image_ids(self, rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """(0, row, column)."""
        return latent.image_ids(rows, columns, device)

    def text_ids(self, length: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """All zero."""
        return latent.text_ids(length, device)

    def guidance_kind(self, transformer: Any, pipeline_config: Mapping[str, Any]) -> GuidanceKind:
        return "embedded" if transformer.config.guidance_embeds else "none"

    def text_length(self, transformer: Any) -> int:
        """512 T5 tokens, or schnell's 256."""
        return 512 if transformer.config.guidance_embeds else 256

    def noise_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return channels, height, width

    def shifter(self, scheduler_config: Mapping[str, Any], steps: int) -> Calibration:
        return Calibration.of(scheduler_config)

    def call(
        self,
        transformer: Any,
        tokens: torch.Tensor,
        sigma: torch.Tensor,
        condition: Condition,
        attention: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        return transformer(
            hidden_states=tokens.to(transformer.dtype),
            timestep=sigma.float(),
            guidance=condition.guidance,
            pooled_projections=condition.pooled,
            encoder_hidden_states=condition.text,
            txt_ids=condition.text_ids,
            img_ids=condition.image_ids,
            joint_attention_kwargs=dict(attention or {}),
            return_dict=False,
        )[0].float()
