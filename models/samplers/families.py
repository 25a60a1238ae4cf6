"""The families that a sampler can be bound to: each is diffusers' stock pipeline with what samplers need."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline

from uhr.models.backbones.flux1 import Flux1
from uhr.models.backbones.flux2 import Flux2
from uhr.models.conditions import Prompt
from uhr.models.pipelines import SamplerPipeline


class OnFlux1(SamplerPipeline, FluxPipeline):
    """FLUX.1's components and text encoding."""

    backbone = Flux1()
    pooled = True

    def embed(self, prompt: Prompt, length: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """T5's [B, length, D] and CLIP's [B, P]."""
        arguments: dict[str, Any] = {
            "prompt": prompt.texts,
            "prompt_2": prompt.texts_2,
            "prompt_embeds": prompt.embeds,
            "pooled_prompt_embeds": prompt.pooled,
        }
        text, pooled, _ = self.encode_prompt(
            **arguments, device=self._execution_device, max_sequence_length=length
        )
        return text, pooled


class OnFlux2(SamplerPipeline, Flux2KleinPipeline):
    """FLUX.2 [klein]'s components and text encoding."""

    backbone = Flux2()
    pooled = False

    def embed(self, prompt: Prompt, length: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Three of Qwen3's hidden states side by side, [B, length, 3 D]; padded places included."""
        arguments: dict[str, Any] = {"prompt": prompt.texts, "prompt_embeds": prompt.embeds}
        text, _ = self.encode_prompt(**arguments, device=self._execution_device, max_sequence_length=length)
        return text, None
